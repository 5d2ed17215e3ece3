/* The kernels, for one instruction set: included after the vectors, with `where_above`, which keeps values where a > b and puts
 * 0 elsewhere. Products and sums are rounded one by one, never fused, so that instruction sets agree. */

TARGET FE_INLINE VEC NAME(sum_at)(const fe_byte_map *x, const fe_byte_map *y, int64_t i, int64_t n) {
    VEC a = NAME(subtract)(NAME(load_bytes)(x->bytes + i, n), NAME(set)((float)x->zero));
    VEC b = NAME(subtract)(NAME(load_bytes)(y->bytes + i, n), NAME(set)((float)y->zero));
    return NAME(add)(NAME(multiply)(a, NAME(set)(x->scale)), NAME(multiply)(b, NAME(set)(y->scale)));
}

TARGET static void NAME(ends)(float ends[2], const fe_byte_map *x, const fe_byte_map *y, int64_t count) {
    VEC lowest = NAME(set)(0.0f), highest = NAME(set)(0.0f);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        VEC sum = NAME(sum_at)(x, y, i, LANES);
        lowest = NAME(minimum)(sum, lowest);
        highest = NAME(maximum)(sum, highest);
    }
    float low[LANES], high[LANES];
    NAME(store)(low, lowest, LANES);
    NAME(store)(high, highest, LANES);
    for (int lane = 0; lane < LANES; lane++) {
        ends[0] = low[lane] < ends[0] ? low[lane] : ends[0];
        ends[1] = high[lane] > ends[1] ? high[lane] : ends[1];
    }
    for (; i < count; i++) {
        float a = (float)(x->bytes[i] - x->zero) * x->scale, b = (float)(y->bytes[i] - y->zero) * y->scale, sum = a + b;
        ends[0] = sum < ends[0] ? sum : ends[0];
        ends[1] = sum > ends[1] ? sum : ends[1];
    }
}

TARGET static void NAME(sum)(uint8_t *out, float inverse, int zero, const fe_byte_map *x, const fe_byte_map *y,
                             int64_t count) {
    const VEC steps = NAME(set)(inverse), origin = NAME(set)((float)zero);
    /* Copies, which bytes that are written cannot be part of. */
    const fe_byte_map a = *x, b = *y;
    for (int64_t i = 0; i < count; i += LANES) {
        int64_t n = least_of(count - i, LANES);
        VEC sum = NAME(add)(NAME(multiply)(NAME(sum_at)(&a, &b, i, n), steps), origin);
        NAME(store_bytes)(out + i, sum, n);
    }
}

TARGET static void NAME(mask)(float *out, const float *grad, const uint8_t *bytes, int zero, int64_t count) {
    const VEC origin = NAME(set)((float)zero);
    for (int64_t i = 0; i < count; i += LANES) {
        int64_t n = least_of(count - i, LANES);
        VEC passes = NAME(where_above)(NAME(load_bytes)(bytes + i, n), origin, NAME(load)(grad + i, n));
        NAME(store)(out + i, passes, n);
    }
}

static const sums_version NAME(version) = {NAME(ends), NAME(sum), NAME(mask)};
