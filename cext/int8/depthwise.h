/* Depthwise convolutions, for one instruction set: lanes are channels. */

TARGET static void NAME(widen)(float *to, const uint8_t *from, int64_t step, int64_t count, int64_t channels, int zero) {
    const INTS off = LANE(all)(zero);
    if (channels == DEPTH_CHANNELS) {
        for (int64_t i = 0; i < count; i++, from += step, to += DEPTH_CHANNELS)
            UNROLL(16)
            for (int c = 0; c < DEPTH_CHANNELS; c += LANES)
                LANE(store)(to + c, LANE(floats)(LANE(minus)(LANE(load_bytes)(from + c), off)), LANES);
        return;
    }
    for (int64_t i = 0; i < count; i++, from += step, to += DEPTH_CHANNELS)
        for (int64_t c = 0; c < DEPTH_CHANNELS; c++)
            to[c] = c < channels ? (float)(from[c] - zero) : 0.0f;
}

TARGET FE_INLINE void NAME(depth_lanes)(tile_job *to, const depth_job *job, int channel, const int64_t taps) {
    const VEC scale = LANE(load)(to->scale + channel, LANES), bias = LANE(load)(to->bias + channel, LANES);
    const int64_t lanes = smaller(LANES, to->columns - channel), some = taps ? taps : job->taps;
    VEC low = LANE(set)(to->low), high = LANE(set)(to->high), kept[DEPTH_TAPS];
    int64_t offsets[DEPTH_TAPS];
    UNROLL(9)
    for (int64_t t = 0; t < taps; t++) {
        kept[t] = LANE(load)(job->weights + t * DEPTH_CHANNELS + channel, LANES);
        offsets[t] = job->offsets[t];
    }
    const int64_t *at = to->to;
    for (int64_t r = 0; r < job->rows; r++) {
        const float *cells = job->cells + r * job->down + channel;
        for (int64_t i = 0; i < job->pixels; i++, cells += job->step, at++) {
            VEC sum = LANE(set)(0.0f);
            if (taps)
                UNROLL(9)
                for (int64_t t = 0; t < taps; t++)
                    sum = LANE(multiply_add)(LANE(load)(cells + offsets[t], LANES), kept[t], sum);
            else
                for (int64_t t = 0; t < some; t++)
                    sum = LANE(multiply_add)(LANE(load)(cells + job->offsets[t], LANES),
                                             LANE(load)(job->weights + t * DEPTH_CHANNELS + channel, LANES), sum);
            VEC value = LANE(add)(LANE(multiply)(sum, scale), bias);
            low = LANE(least)(low, value);
            high = LANE(greatest)(high, value);
            if (LANES == DEPTH_CHANNELS && to->streams)
                LANE(store_past)(to->floats + *at + channel, value);
            else
                NAME(put)(to, *at + channel, value, lanes);
        }
    }
    /* Lanes beyond the last channel are 0 throughout. */
    float ends[LANES];
    LANE(store)(ends, low, LANES);
    for (int i = 0; i < LANES; i++)
        to->low = ends[i] < to->low ? ends[i] : to->low;
    LANE(store)(ends, high, LANES);
    for (int i = 0; i < LANES; i++)
        to->high = ends[i] > to->high ? ends[i] : to->high;
}

TARGET static void NAME(depth_rows)(tile_job *to, const depth_job *job) {
    for (int c = 0; c < DEPTH_CHANNELS && c < to->columns; c += LANES)
        if (job->taps == DEPTH_TAPS)
            NAME(depth_lanes)(to, job, c, DEPTH_TAPS);
        else
            NAME(depth_lanes)(to, job, c, 0);
}

TARGET FE_INLINE void NAME(gram_lanes)(double *sums, const depth_job *job, int64_t first, int channel, const int taps) {
    VEC some[DEPTH_TAPS];
    int64_t offsets[DEPTH_TAPS];
    UNROLL(9)
    for (int t = 0; t < taps; t++) {
        some[t] = LANE(set)(0.0f);
        offsets[t] = job->offsets[first + t];
    }
    const float *errors = job->errors + channel;
    for (int64_t r = 0; r < job->rows; r++) {
        const float *cells = job->cells + r * job->down + channel;
        for (int64_t i = 0; i < job->pixels; i++, cells += job->step, errors += DEPTH_CHANNELS) {
            VEC error = LANE(load)(errors, LANES);
            UNROLL(9)
            for (int t = 0; t < taps; t++)
                some[t] = LANE(multiply_add)(LANE(load)(cells + offsets[t], LANES), error, some[t]);
        }
    }
    UNROLL(9)
    for (int t = 0; t < taps; t++) {
        float found[LANES];
        LANE(store)(found, some[t], LANES);
        double *to = sums + (first + t) * DEPTH_CHANNELS + channel;
        for (int i = 0; i < LANES; i++)
            to[i] += (double)found[i];
    }
}

TARGET static void NAME(depth_gram)(double *sums, const depth_job *job) {
    for (int c = 0; c < DEPTH_CHANNELS; c += LANES) {
        int64_t t = 0;
        for (; t + DEPTH_TAPS <= job->taps; t += DEPTH_TAPS)
            NAME(gram_lanes)(sums, job, t, c, DEPTH_TAPS);
        for (; t < job->taps; t++)
            NAME(gram_lanes)(sums, job, t, c, 1);
    }
}
