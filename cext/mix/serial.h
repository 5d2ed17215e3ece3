/* Plain C. Multiplies and adds round separately here; the other versions fuse them, so the last bits may differ. */
static void mix_serial(fe_float *out, const fe_float *const *x, const float *w, size_t count, size_t length,
                       unsigned how) {
    enum { TILE = 16 };
    (void)how;
    size_t i = 0;
    for (; i + TILE <= length; i += TILE) {
        float sum[TILE];
        for (int t = 0; t < TILE; t++)
            sum[t] = w[0] * x[0][i + t];
        for (size_t k = 1; k < count; k++)
            for (int t = 0; t < TILE; t++)
                sum[t] += w[k] * x[k][i + t];
        for (int t = 0; t < TILE; t++)
            out[i + t] = sum[t];
    }
    for (; i < length; i++) {
        float sum = w[0] * x[0][i];
        for (size_t k = 1; k < count; k++)
            sum += w[k] * x[k][i];
        out[i] = sum;
    }
}
