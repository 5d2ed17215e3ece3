/* Floats become bytes and bytes floats, for one instruction set; and the version itself. */

#include "lanes/random.h"

TARGET FE_INLINE VEC NAME(cut)(VEC steps, float least, float most) {
    return LANE(least)(LANE(greatest)(steps, LANE(set)(least)), LANE(set)(most));
}

/* RUN elements; the low halves of the counters' random bits round the first half of them. */
TARGET FE_INLINE void NAME(round_run)(uint8_t *out, const float *x, uint32_t counter, const fe_rounding *rounding,
                                      const uint32_t keys[2], const int stochastic) {
    const VEC inverse = LANE(set)(rounding->inverse), step = LANE(set)(1.0f / 65536.0f), half = LANE(set)(0.5f / 65536.0f);
    const float least = (float)(rounding->least - rounding->zero), most = (float)(rounding->most - rounding->zero);
    const INTS zero = LANE(all)(rounding->zero);
    for (int i = 0; i < RUN / 2; i += LANES) {
        VEC a = NAME(cut)(LANE(multiply)(LANE(load)(x + i, LANES), inverse), least, most);
        VEC b = NAME(cut)(LANE(multiply)(LANE(load)(x + RUN / 2 + i, LANES), inverse), least, most);
        if (stochastic) {
            INTS bits = NAME(random)(counter + (uint32_t)i, keys[0], LANE(all)((int32_t)keys[1]));
            VEC low = LANE(floats)(LANE(both)(bits, LANE(all)(0xffff)));
            VEC high = LANE(floats)(LANE(shift_right)(bits, 16));
            /* Whether products are fused does not matter to what a float holds exactly. */
            a = LANE(add)(a, LANE(multiply_add)(low, step, half));
            b = LANE(add)(b, LANE(multiply_add)(high, step, half));
            LANE(store_bytes)(out + i, LANE(plus)(LANE(below)(a), zero));
            LANE(store_bytes)(out + RUN / 2 + i, LANE(plus)(LANE(below)(b), zero));
        } else {
            LANE(store_bytes)(out + i, LANE(plus)(LANE(nearest)(a), zero));
            LANE(store_bytes)(out + RUN / 2 + i, LANE(plus)(LANE(nearest)(b), zero));
        }
    }
}

TARGET FE_INLINE void NAME(quantise_of)(uint8_t *out, const float *x, int64_t count, int64_t first,
                                        const fe_rounding *rounding, const int stochastic) {
    uint64_t mixed = fe_mixed(rounding->seed);
    const uint32_t keys[2] = {(uint32_t)mixed, (uint32_t)(mixed >> 32)};
    uint32_t counter = (uint32_t)(first / RUN * (RUN / 2));
    /* A copy, which bytes that are written cannot be part of. */
    const fe_rounding how = *rounding;
    for (; count >= RUN; count -= RUN, x += RUN, out += RUN, counter += RUN / 2) {
        /* Across the borders of pages, which the hardware heeds. Without random numbers that takes longer than it saves. */
        if (stochastic) {
            __builtin_prefetch(x + FAR);
            __builtin_prefetch(x + FAR + RUN / 2);
        }
        NAME(round_run)(out, x, counter, &how, keys, stochastic);
    }
    if (count > 0) {
        float rest[RUN] = {0};
        uint8_t bytes[RUN];
        memcpy(rest, x, (size_t)count * sizeof *x);
        NAME(round_run)(bytes, rest, counter, &how, keys, stochastic);
        memcpy(out, bytes, (size_t)count);
    }
}

TARGET static void NAME(quantise)(uint8_t *out, const float *x, int64_t count, int64_t first, const fe_rounding *rounding) {
    if (rounding->stochastic)
        NAME(quantise_of)(out, x, count, first, rounding, 1);
    else
        NAME(quantise_of)(out, x, count, first, rounding, 0);
}

TARGET FE_INLINE void NAME(halve)(uint8_t *high, uint8_t *low, VEC x, VEC inverse) {
    const float most = (float)(127 * FE_HALF + 127);
    INTS whole = LANE(nearest)(NAME(cut)(LANE(multiply)(x, inverse), -most, most));
    INTS upper = LANE(nearest)(LANE(multiply)(LANE(floats)(whole), LANE(set)(1.0f / FE_HALF)));
    INTS lower = LANE(minus)(whole, LANE(times)(upper, LANE(all)(FE_HALF)));
    LANE(store_bytes)(high, LANE(plus)(upper, LANE(all)(FE_ERROR_ZERO)));
    LANE(store_bytes)(low, LANE(plus)(lower, LANE(all)(FE_ERROR_ZERO)));
}

TARGET static void NAME(halves)(uint8_t *high, uint8_t *low, const float *x, int64_t count, float inverse) {
    const VEC factor = LANE(set)(inverse);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        NAME(halve)(high + i, low + i, LANE(load)(x + i, LANES), factor);
    if (i < count) {
        uint8_t both[2][LANES];
        NAME(halve)(both[0], both[1], LANE(load)(x + i, count - i), factor);
        memcpy(high + i, both[0], (size_t)(count - i));
        memcpy(low + i, both[1], (size_t)(count - i));
    }
}

TARGET static void NAME(dequantise)(float *out, const uint8_t *x, int64_t count, float scale, int zero) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        INTS steps = LANE(minus)(LANE(load_bytes)(x + i), LANE(all)(zero));
        LANE(store)(out + i, LANE(multiply)(LANE(floats)(steps), LANE(set)(scale)), LANES);
    }
    for (; i < count; i++)
        out[i] = (float)(x[i] - zero) * scale;
}

TARGET static void NAME(range)(float ends[2], const float *x, int64_t count) {
    enum { CHAINS = 4 };
    const VEC none = LANE(set)(0.0f);
    VEC low[CHAINS], high[CHAINS], finite[CHAINS];
    UNROLL(4)
    for (int k = 0; k < CHAINS; k++)
        low[k] = high[k] = finite[k] = none;
    int64_t i = 0;
    for (; i + CHAINS * LANES <= count; i += CHAINS * LANES)
        UNROLL(4)
        for (int k = 0; k < CHAINS; k++) {
            VEC value = LANE(load)(x + i + k * LANES, LANES);
            low[k] = LANE(least)(low[k], value);
            high[k] = LANE(greatest)(high[k], value);
            /* A NaN from the first NaN or infinity on. */
            finite[k] = LANE(multiply_add)(value, none, finite[k]);
        }
    for (; i < count; i += LANES) {
        VEC value = LANE(load)(x + i, smaller(LANES, count - i));
        low[0] = LANE(least)(low[0], value);
        high[0] = LANE(greatest)(high[0], value);
        finite[0] = LANE(multiply_add)(value, none, finite[0]);
    }
    float strange = 0.0f;
    ends[0] = ends[1] = 0.0f;
    for (int k = 0; k < CHAINS; k++) {
        float lows[LANES], highs[LANES], sound[LANES];
        LANE(store)(lows, low[k], LANES);
        LANE(store)(highs, high[k], LANES);
        LANE(store)(sound, finite[k], LANES);
        for (int lane = 0; lane < LANES; lane++) {
            ends[0] = ends[0] < lows[lane] ? ends[0] : lows[lane];
            ends[1] = ends[1] > highs[lane] ? ends[1] : highs[lane];
            strange += sound[lane];
        }
    }
    /* Nothing is added to the ends of what is finite. */
    ends[0] += strange;
    ends[1] += strange;
}

static const int8_version NAME(version) = {
    .group = GROUP,
    .lanes = LANES,
    .vectors = VECTORS,
    .cell = sizeof(CELL),
    .flip = FLIP,
    .convolve = NAME(convolve),
    .gram = NAME(gram),
    .cells = NAME(cells),
    .planes = NAME(planes),
    .interleave = NAME(interleave),
    .finish = NAME(finish),
    .pack = NAME(pack),
    .range = NAME(range),
    .quantise = NAME(quantise),
    .halves = NAME(halves),
    .dequantise = NAME(dequantise),
    .widen = NAME(widen),
    .depth_rows = NAME(depth_rows),
    .depth_gram = NAME(depth_gram),
};
