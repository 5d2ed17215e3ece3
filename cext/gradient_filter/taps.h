/* Weights over their taps, where the lanes are input channels: a header of kernels, see lanes/serial.h. */

TARGET FE_INLINE void NAME(collapse_lanes)(const tap_job *job, const float *in, float *out, int64_t n) {
    const float *symbols = job->symbols;
    for (int64_t u = 0; u < job->components; u++, symbols += job->taps) {
        VEC sum = NAME(set)(0.0f);
        for (int64_t t = 0; t < job->taps; t++)
            sum = NAME(multiply_add)(NAME(set)(symbols[t]), NAME(load)(in + t * job->inner, n), sum);
        NAME(store)(out + u * job->pairs, sum, n);
    }
}

TARGET static void NAME(collapse)(const tap_job *job, int64_t output) {
    const float *in = job->in + output * job->taps * job->inner;
    float *out = job->out + output * job->inner;
    int64_t i = 0;
    for (; i + LANES <= job->inner; i += LANES)
        NAME(collapse_lanes)(job, in + i, out + i, LANES);
    if (i < job->inner)
        NAME(collapse_lanes)(job, in + i, out + i, job->inner - i);
}

TARGET FE_INLINE void NAME(spread_lanes)(const tap_job *job, const float *symbols, const float *in, float *out, int64_t n) {
    VEC sum = NAME(set)(0.0f);
    for (int64_t u = 0; u < job->components; u++)
        sum = NAME(multiply_add)(NAME(set)(symbols[u * job->taps]), NAME(load)(in + u * job->pairs, n), sum);
    NAME(store)(out, NAME(multiply)(NAME(set)(job->scale), sum), n);
}

/* Tap by tap, so that memory is written in one run. */
TARGET static void NAME(spread)(const tap_job *job, int64_t output) {
    const float *in = job->in + output * job->inner;
    float *out = job->out + output * job->taps * job->inner;
    for (int64_t t = 0; t < job->taps; t++, out += job->inner) {
        int64_t i = 0;
        for (; i + LANES <= job->inner; i += LANES)
            NAME(spread_lanes)(job, job->symbols + t, in + i, out + i, LANES);
        if (i < job->inner)
            NAME(spread_lanes)(job, job->symbols + t, in + i, out + i, job->inner - i);
    }
}
