/* Pruning, and signs of weights. Included once for each instruction set. */
#include "lanes/random.h"

TARGET static int64_t NAME(prune)(const prune_job *job) {
    const INTS key = NAME(all)((int32_t)job->keys[0]), other = NAME(all)((int32_t)job->keys[1]);
    const VEC threshold = NAME(set)(job->threshold);
    const float *x = job->x;
    uint32_t counter = job->counter;
    int64_t count = 0;
    int32_t *bounds = job->bounds;
    for (int64_t pixel = 0; pixel < job->pixels; pixel++) {
        for (int64_t c = 0, n; c < job->channels; c += n, x += n, counter += (uint32_t)n) {
            n = smaller(LANES, job->channels - c);
            if (c % FE_STRETCH == 0)
                *bounds++ = job->base + (int32_t)count;
            INTS bits = NAME(random)(NAME(plus)(NAME(all)((int32_t)counter), NAME(count_up)()), key, other);
            int32_t place = (int32_t)((uint32_t)pixel << FE_CHANNEL_BITS | (uint32_t)c);
            INTS places = NAME(plus)(NAME(all)(place), NAME(count_up)());
            count += NAME(append)(job->places + count, job->values + count, NAME(load)(x, n), bits, places, threshold);
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
#pragma GCC unroll 4
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
