/* Plain C; also the tail of the other versions. Every comparison is false for a NaN, in x as in cap. Without branches:
 * signs are as good as random, so a processor would guess half of them wrong. */
static void relu_bits_serial(fe_float *out, uint8_t *bits, const fe_float *x, size_t length, float cap) {
    for (size_t byte = 0; 8 * byte < length; byte++) {
        size_t first = 8 * byte, count = length - first < 8 ? length - first : 8;
        uint32_t passes = 0;
        for (size_t k = 0; k < count; k++) {
            float value = x[first + k];
            uint32_t low = value <= 0.0f, high = value >= cap;
            value = high ? cap : value;
            uint32_t word;
            memcpy(&word, &value, sizeof word);
            word &= low - 1;
            memcpy(out + first + k, &word, sizeof word);
            passes |= ((low | high) ^ 1) << k;
        }
        bits[byte] = (uint8_t)passes;
    }
}

static void mask_by_bits_serial(fe_float *out, const fe_float *x, const uint8_t *bits, size_t length) {
    for (size_t i = 0; i < length; i++) {
        uint32_t word;
        memcpy(&word, x + i, sizeof word);
        word &= -(uint32_t)(bits[i / 8] >> i % 8 & 1);
        memcpy(out + i, &word, sizeof word);
    }
}
