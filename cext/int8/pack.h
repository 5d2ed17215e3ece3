/* Weights become bytes, for one instruction set, in the order that they are multiplied in. Plain loops: where their length is
 * PACKED, which the compiler knows, it turns them into vectors. */

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

TARGET FE_INLINE void NAME(raise)(int32_t *magnitudes, const float *weight, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        magnitudes[i] = NAME(magnitude)(weight[i]) > magnitudes[i] ? NAME(magnitude)(weight[i]) : magnitudes[i];
}

TARGET FE_INLINE void NAME(largest)(int32_t *magnitudes, const pack_job *job) {
    const int64_t columns = job->columns, whole = job->places * job->channels;
    memset(magnitudes, 0, (size_t)columns * sizeof *magnitudes);
    if (job->made == 1) {
        for (int64_t i = 0; i < columns; i++) {
            int32_t found[PACKED] = {0};
            const float *weight = job->weight + i * job->result;
            int64_t k = 0;
            for (; k + PACKED <= whole; k += PACKED)
                NAME(raise)(found, weight + k, PACKED);
            NAME(raise)(found, weight + k, whole - k);
            for (int lane = 0; lane < PACKED; lane++)
                magnitudes[i] = found[lane] > magnitudes[i] ? found[lane] : magnitudes[i];
        }
        return;
    }
    for (int64_t k = 0; k < job->channels; k++)
        for (int64_t t = 0; t < job->places; t++) {
            const float *weight = job->weight + k * job->made + t * job->tap;
            int64_t i = 0;
            for (; i + PACKED <= columns; i += PACKED)
                NAME(raise)(magnitudes + i, weight + i, PACKED);
            NAME(raise)(magnitudes + i, weight + i, columns - i);
        }
}

TARGET FE_INLINE int32_t NAME(bytes_of_row)(int8_t *restrict to, const float *row, float inverse, int64_t count) {
    int32_t sum = 0;
    for (int64_t c = 0; c < count; c++)
        to[c] = (int8_t)NAME(nearest_byte)(row[c] * inverse);
    for (int64_t c = 0; c < count; c++)
        sum += to[c];
    return sum;
}

/* Rows of the weight are columns here: groups of channels lie side by side already. */
TARGET FE_INLINE void NAME(pack_rows)(const pack_job *job, int8_t *to, const float *weight, const float *inverse,
                                      int64_t width, int32_t *sums) {
    for (int64_t i = 0; i < job->columns; i++) {
        sums[i] = 0;
        for (int64_t k = 0; k < job->channels; k += PACKED) {
            int8_t bytes[PACKED] = {0};
            const float *row = weight + i * job->result + k;
            int64_t count = smaller(PACKED, job->channels - k);
            if (count == PACKED)
                sums[i] += NAME(bytes_of_row)(bytes, row, inverse[i], PACKED);
            else
                sums[i] += NAME(bytes_of_row)(bytes, row, inverse[i], count);
            for (int64_t c = 0; c < count; c += GROUP)
                memcpy(to + (k + c) * width + i * GROUP, bytes + c, GROUP);
        }
    }
}

TARGET FE_INLINE void NAME(bytes_of_columns)(uint8_t *restrict to, int32_t *restrict sums, const float *row,
                                             const float *inverse, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        to[i] = NAME(nearest_byte)(row[i] * inverse[i]) ^ FE_ERROR_ZERO;
    for (int64_t i = 0; i < count; i++)
        sums[i] += (int32_t)to[i] - FE_ERROR_ZERO;
}

TARGET FE_INLINE void NAME(pack_columns)(const pack_job *job, int8_t *to, const float *weight, const float *inverse,
                                         int64_t width, int32_t *sums) {
    uint8_t rows[MOST_GROUP][MOST_COLUMNS];
    memset(sums, 0, (size_t)width * sizeof *sums);
    for (int64_t k = 0; k < job->channels; k += GROUP, to += width * GROUP) {
        memset(rows, FE_ERROR_ZERO, sizeof rows);
        for (int64_t g = 0; g < smaller(GROUP, job->channels - k); g++) {
            const float *row = weight + (k + g) * job->made;
            int64_t i = 0;
            for (; i + PACKED <= job->columns; i += PACKED)
                NAME(bytes_of_columns)(rows[g] + i, sums + i, row + i, inverse + i, PACKED);
            NAME(bytes_of_columns)(rows[g] + i, sums + i, row + i, inverse + i, job->columns - i);
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
