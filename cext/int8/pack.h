/* Weights become bytes, for one instruction set, in the order that they are multiplied in. Plain loops, which the compiler
 * turns into vectors. */

/* Magnitudes of floats are ordered as their bits are; those of NaN and infinity come last. */
FE_INLINE int32_t NAME(magnitude)(float value) {
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits & 0x7fffffff;
}

/* To the nearest integer, half to even, as the last byte of a float in which a step is 1. For magnitudes below 2^22. */
FE_INLINE uint8_t NAME(nearest_byte)(float value) {
    float shifted = value + 12582912.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    return (uint8_t)bits;
}

TARGET FE_INLINE void NAME(largest)(int32_t *magnitudes, const pack_job *job) {
    const int64_t columns = job->columns, whole = job->places * job->channels;
    for (int64_t i = 0; i < columns; i++)
        magnitudes[i] = 0;
    if (job->made == 1) {
        for (int64_t i = 0; i < columns; i++) {
            int32_t largest = 0;
            const float *weight = job->weight + i * job->result;
            for (int64_t k = 0; k < whole; k++)
                largest = NAME(magnitude)(weight[k]) > largest ? NAME(magnitude)(weight[k]) : largest;
            magnitudes[i] = largest;
        }
        return;
    }
    for (int64_t k = 0; k < job->channels; k++)
        for (int64_t t = 0; t < job->places; t++) {
            const float *weight = job->weight + k * job->made + t * job->tap;
            for (int64_t i = 0; i < columns; i++)
                magnitudes[i] = NAME(magnitude)(weight[i]) > magnitudes[i] ? NAME(magnitude)(weight[i]) : magnitudes[i];
        }
}

/* Rows of the weight are columns here: groups of channels lie side by side already. */
TARGET FE_INLINE void NAME(pack_rows)(const pack_job *job, int8_t *to, const float *weight, const float *inverse,
                                      int64_t width, int32_t *sums) {
    enum { STRIP = 64 };
    for (int64_t i = 0; i < job->columns; i++) {
        int32_t sum = 0;
        for (int64_t k = 0; k < job->channels; k += STRIP) {
            int8_t strip[STRIP] = {0};
            int64_t length = smaller(STRIP, job->channels - k);
            const float *row = weight + i * job->result + k;
            for (int64_t c = 0; c < length; c++)
                strip[c] = (int8_t)NAME(nearest_byte)(row[c] * inverse[i]);
            for (int64_t c = 0; c < length; c++)
                sum += strip[c];
            for (int64_t c = 0; c < length; c += GROUP)
                memcpy(to + (k + c) * width + i * GROUP, strip + c, GROUP);
        }
        sums[i] = sum;
    }
}

TARGET FE_INLINE void NAME(pack_columns)(const pack_job *job, int8_t *to, const float *weight, const float *inverse,
                                         int64_t width, int32_t *sums) {
    uint8_t rows[MOST_GROUP][MOST_COLUMNS];
    for (int64_t i = 0; i < width; i++)
        sums[i] = 0;
    for (int64_t k = 0; k < job->channels; k += GROUP, to += width * GROUP) {
        memset(rows, FE_ERROR_ZERO, sizeof rows);
        for (int64_t g = 0; g < smaller(GROUP, job->channels - k); g++) {
            const float *row = weight + (k + g) * job->made;
            for (int64_t i = 0; i < job->columns; i++) {
                rows[g][i] = NAME(nearest_byte)(row[i] * inverse[i]) ^ FE_ERROR_ZERO;
                sums[i] += (int32_t)rows[g][i] - FE_ERROR_ZERO;
            }
        }
        int64_t i = 0;
        for (; i + 16 <= width; i += 16)
            NAME(interleave_16)(to + i * GROUP, rows[0] + i, MOST_COLUMNS);
        for (; i < width; i++)
            for (int64_t g = 0; g < GROUP; g++)
                to[i * GROUP + g] = (int8_t)(rows[g][i] ^ FE_ERROR_ZERO);
    }
}

TARGET static int NAME(pack)(const pack_job *job) {
    const int64_t width = ceiling_of(job->columns, LANES) * LANES, groups = ceiling_of(job->channels, GROUP);
    int32_t magnitudes[MOST_COLUMNS], sums[MOST_COLUMNS];
    float inverse[MOST_COLUMNS];
    NAME(largest)(magnitudes, job);
    for (int64_t i = 0; i < job->columns; i++) {
        float largest;
        memcpy(&largest, magnitudes + i, sizeof largest);
        if (magnitudes[i] >= 0x7f800000)
            return FE_NOT_FINITE;
        job->scales[i] = largest > 0.0f ? (largest / 127.0f > 1.2e-38f ? largest / 127.0f : 1.2e-38f) : 1.0f;
        inverse[i] = 1.0f / job->scales[i];
    }
    for (int64_t t = 0; t < job->count; t++) {
        int8_t *to = job->bytes + t * groups * width * GROUP;
        const float *weight = job->weight + job->taps[t] * job->tap;
        if (job->made == 1) {
            memset(to, 0, (size_t)(groups * width * GROUP));
            NAME(pack_rows)(job, to, weight, inverse, width, sums);
        } else {
            NAME(pack_columns)(job, to, weight, inverse, width, sums);
        }
        memcpy(job->sums + t * job->stride, sums, (size_t)job->columns * sizeof *sums);
    }
    return 0;
}
