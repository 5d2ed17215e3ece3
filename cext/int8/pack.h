/* Weights become bytes, for one instruction set, in the order that they are multiplied in. */

/* The least and the greatest so far and 0, and a NaN from the first NaN or infinity on. */
typedef struct {
    VEC low, high, finite;
} NAME(ends);

TARGET FE_INLINE void NAME(widen_ends)(NAME(ends) *of, const float *weight, int64_t n) {
    const VEC value = LANE(load)(weight, n);
    of->low = LANE(least)(of->low, value);
    of->high = LANE(greatest)(of->high, value);
    of->finite = LANE(multiply_add)(value, LANE(set)(0.0f), of->finite);
}

/* For each lane the largest magnitude, or a NaN. */
TARGET FE_INLINE void NAME(magnitudes)(float *to, const NAME(ends) *of) {
    LANE(store)(to, LANE(add)(LANE(greatest)(of->high, LANE(multiply)(of->low, LANE(set)(-1.0f))), of->finite), LANES);
}

TARGET FE_INLINE void NAME(largest)(float *largest, const pack_job *job) {
    const int64_t columns = job->columns, whole = job->places * job->channels;
    const VEC zero = LANE(set)(0.0f);
    if (job->made == 1) {
        for (int64_t i = 0; i < columns; i++) {
            NAME(ends) row = {zero, zero, zero};
            float found[LANES];
            for (int64_t k = 0; k < whole; k += LANES)
                NAME(widen_ends)(&row, job->weight + i * job->result + k, smaller(LANES, whole - k));
            NAME(magnitudes)(found, &row);
            largest[i] = 0.0f;
            for (int lane = 0; lane < LANES; lane++)
                /* A NaN stays. */
                largest[i] = found[lane] > largest[i] || found[lane] != found[lane] ? found[lane] : largest[i];
        }
        return;
    }
    for (int64_t i = 0; i < columns; i += LANES) {
        NAME(ends) column = {zero, zero, zero};
        for (int64_t k = 0; k < job->channels; k++)
            for (int64_t t = 0; t < job->places; t++)
                NAME(widen_ends)(&column, job->weight + i + k * job->made + t * job->tap, smaller(LANES, columns - i));
        NAME(magnitudes)(largest + i, &column);
    }
}

TARGET FE_INLINE INTS NAME(steps_of)(const float *weight, VEC inverse, int64_t n) {
    return LANE(nearest)(LANE(multiply)(LANE(load)(weight, n), inverse));
}

/* Rows of the weight are columns here: groups of channels lie side by side already. */
TARGET FE_INLINE void NAME(pack_rows)(const pack_job *job, int8_t *to, const float *weight, const float *inverse,
                                      int64_t width, int32_t *sums) {
    enum { STRIP = 64 };
    const INTS zero = LANE(all)(FE_ERROR_ZERO);
    for (int64_t i = 0; i < job->columns; i++) {
        const VEC factor = LANE(set)(inverse[i]);
        INTS sum = LANE(all)(0);
        for (int64_t k = 0; k < job->channels; k += STRIP) {
            uint8_t strip[STRIP];
            const int64_t length = smaller(STRIP, job->channels - k);
            const float *row = weight + i * job->result + k;
            memset(strip, FE_ERROR_ZERO, sizeof strip);
            for (int64_t c = 0; c < length; c += LANES) {
                const INTS steps = NAME(steps_of)(row + c, factor, smaller(LANES, length - c));
                LANE(store_bytes)(strip + c, LANE(plus)(steps, zero));
                sum = LANE(plus)(sum, steps);
            }
            for (int64_t c = 0; c < length; c += GROUP) {
                uint64_t group = 0;
                memcpy(&group, strip + c, GROUP);
                group ^= 0x8080808080808080u;
                memcpy(to + (k + c) * width + i * GROUP, &group, GROUP);
            }
        }
        int32_t lanes[LANES];
        LANE(store_ints)(lanes, sum);
        sums[i] = 0;
        for (int lane = 0; lane < LANES; lane++)
            sums[i] += lanes[lane];
    }
}

TARGET FE_INLINE void NAME(pack_columns)(const pack_job *job, int8_t *to, const float *weight, const float *inverse,
                                         int64_t width, int32_t *sums) {
    uint8_t rows[MOST_GROUP][MOST_COLUMNS];
    for (int64_t i = 0; i < width; i += LANES)
        LANE(store_ints)(sums + i, LANE(all)(0));
    for (int64_t k = 0; k < job->channels; k += GROUP, to += width * GROUP) {
        memset(rows, FE_ERROR_ZERO, sizeof rows);
        for (int64_t g = 0; g < smaller(GROUP, job->channels - k); g++) {
            const float *row = weight + (k + g) * job->made;
            for (int64_t i = 0; i < job->columns; i += LANES) {
                const int64_t n = smaller(LANES, job->columns - i);
                const INTS steps = NAME(steps_of)(row + i, LANE(load)(inverse + i, n), n);
                LANE(store_bytes)(rows[g] + i, LANE(plus)(steps, LANE(all)(FE_ERROR_ZERO)));
                LANE(store_ints)(sums + i, LANE(plus)(LANE(load_ints)(sums + i), steps));
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
    int32_t sums[MOST_COLUMNS];
    float largest[MOST_COLUMNS], inverse[MOST_COLUMNS];
    NAME(largest)(largest, job);
    for (int64_t i = 0; i < job->columns; i++) {
        if (largest[i] != largest[i])
            return FE_NOT_FINITE;
        job->scales[i] = largest[i] > 0.0f ? (largest[i] / 127.0f > 1.2e-38f ? largest[i] / 127.0f : 1.2e-38f) : 1.0f;
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
