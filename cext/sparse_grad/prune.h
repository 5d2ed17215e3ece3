/* Pruning, and signs of weights. Included once for each instruction set. */
#include "lanes/random.h"

/* Up to RUN channels of a pixel. The low halves of the counters' random bits are for the first half of them. */
TARGET FE_INLINE int64_t NAME(prune_run)(const prune_job *job, const float *x, int64_t n, uint32_t counter, uint32_t place,
                                         int64_t count) {
    enum { WORDS = RUN / 2 / LANES };
    const VEC threshold = NAME(set)(job->threshold);
    const INTS up = NAME(count_up)(), other = NAME(all)((int32_t)job->keys[1]);
    /* Across the borders of pages, which the hardware heeds. */
    __builtin_prefetch(x + FAR);
    __builtin_prefetch(x + FAR + LINE / (int64_t)sizeof(float));
    INTS bits[WORDS];
    UNROLL(16)
    for (int i = 0; i < WORDS; i++)
        bits[i] = NAME(random)(counter + (uint32_t)(i * LANES), job->keys[0], other);
    UNROLL(32)
    for (int i = 0; i < 2 * WORDS; i++) {
        if (i * LANES >= n)
            break;
        VEC value = NAME(load)(x + i * LANES, smaller(LANES, n - i * LANES));
        INTS chance = i < WORDS ? NAME(shift_left)(bits[i % WORDS], 7) : LANE(shift_right)(bits[i % WORDS], 9);
        INTS places = NAME(plus)(NAME(all)((int32_t)(place + (uint32_t)(i * LANES))), up);
        count += NAME(append)(job->places + count, job->values + count, value, NAME(chance)(chance), places, threshold);
    }
    return count;
}

TARGET static int64_t NAME(prune)(const prune_job *job) {
    const float *x = job->x;
    uint32_t counter = job->counter;
    int32_t *bounds = job->bounds;
    int64_t count = 0;
    for (int64_t pixel = 0; pixel < job->pixels; pixel++, x += job->channels) {
        const uint32_t place = (uint32_t)pixel << FE_CHANNEL_BITS;
        int64_t c = 0;
        for (; c + RUN <= job->channels; c += RUN, counter += RUN / 2) {
            *bounds++ = job->base + (int32_t)count;
            count = NAME(prune_run)(job, x + c, RUN, counter, place + (uint32_t)c, count);
        }
        if (c < job->channels) {
            *bounds++ = job->base + (int32_t)count;
            count = NAME(prune_run)(job, x + c, job->channels - c, counter, place + (uint32_t)c, count);
            counter += RUN / 2;
        }
        *bounds++ = job->base + (int32_t)count;
    }
    return count;
}

TARGET static double NAME(signs_of)(uint8_t *bits, const float *weight, int64_t taps, int64_t inputs) {
    /* A filter's magnitudes are summed in lanes: these are short chains. */
    VEC sums[2] = {NAME(set)(0.0f), NAME(set)(0.0f)};
    for (int64_t tap = 0; tap < taps; tap++, weight += inputs, bits += ceiling_of(inputs, 8))
        for (int64_t c = 0; c < inputs; c += MOST_LANES) {
            uint32_t negative = 0;
            UNROLL(4)
            for (int i = 0; i < MOST_LANES / LANES; i++) {
                int64_t from = c + i * LANES;
                if (from >= inputs)
                    break;
                VEC x = NAME(load)(weight + from, smaller(LANES, inputs - from));
                sums[i % 2] = NAME(add)(sums[i % 2], NAME(magnitude)(x));
                negative |= NAME(negative)(x) << i * LANES;
            }
            bits[c / 8] = (uint8_t)negative;
            if (inputs - c > 8)
                bits[c / 8 + 1] = (uint8_t)(negative >> 8);
        }
    float lanes[2][LANES];
    double sum = 0.0;
    for (int k = 0; k < 2; k++) {
        NAME(store)(lanes[k], sums[k], LANES);
        for (int i = 0; i < LANES; i++)
            sum += (double)lanes[k][i];
    }
    return sum;
}
