/* Plain C; also the tail of the other versions. Every comparison is false for a NaN, in x as in cap. */
static void relu_bits_serial(fe_float *out, uint8_t *bits, const fe_float *x, size_t length, float cap) {
    for (size_t byte = 0; 8 * byte < length; byte++) {
        size_t first = 8 * byte, count = length - first < 8 ? length - first : 8;
        unsigned passes = 0;
        for (size_t k = 0; k < count; k++) {
            float value = x[first + k];
            int low = value <= 0.0f, high = value >= cap;
            passes |= (unsigned)!(low | high) << k;
            out[first + k] = low ? 0.0f : high ? cap : value;
        }
        bits[byte] = (uint8_t)passes;
    }
}

static void mask_by_bits_serial(fe_float *out, const fe_float *x, const uint8_t *bits, size_t length) {
    for (size_t i = 0; i < length; i++)
        out[i] = bits[i / 8] >> i % 8 & 1 ? x[i] : 0.0f;
}
