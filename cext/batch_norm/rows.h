/* Kernels whose lanes are channels. Included once for each instruction set, which defines VEC, LANES, REGISTERS, NAME, TARGET and
 * the primitives. Some neighbouring vectors of channels, whose sums stay in registers, go through a block of pixels together; the
 * last ones of a pixel may have fewer channels, n of them. The number of vectors, and what is done, are compile-time constants of
 * the inlined functions, except in plain C, which is small rather than fast. */
enum {
    /* Vectors that have whole bytes of bits. */
    NAME(group) = LANES < 8 ? 8 / LANES : 1,
    NAME(wide) = NAME(group) > 4 ? NAME(group) : 4,
    /* What is left of a pixel goes by so many. */
    NAME(narrow) = NAME(group) > 2 ? NAME(group) : 2,
};

/* Channels of vector v. */
FE_INLINE int64_t NAME(lanes_of)(int v, int64_t vectors, int64_t n) { return v < vectors - 1 ? LANES : n - v * LANES; }

/* Fetches what lies as far ahead as the next block: a pixel's vectors are read some at a time, in an order in which cores' own
 * prefetchers lose their way. */
FE_INLINE void NAME(fetch)(const float *from, int v, int64_t ahead) {
    if (v * LANES % (LINE / (int)sizeof(float)) == 0)
        __builtin_prefetch(from + v * LANES + ahead, 0, 2);
}

/* The bits of the group that begins with vector v, which are one byte or two. */
FE_INLINE uint32_t NAME(bits_of)(const uint8_t *bits, int v, int64_t n) {
    bits += v * LANES / 8;
    return n - v * LANES > 8 && LANES > 8 ? (uint32_t)bits[0] | (uint32_t)bits[1] << 8 : bits[0];
}

FE_INLINE void NAME(set_bits)(uint8_t *bits, int v, int64_t n, uint32_t word) {
    bits += v * LANES / 8;
    if (n - v * LANES < WIDEST)
        word &= ((uint32_t)1 << (n - v * LANES)) - 1;
    bits[0] = (uint8_t)word;
    if (n - v * LANES > 8 && LANES > 8)
        bits[1] = (uint8_t)(word >> 8);
}

/* Two sums over pixels: with a gradient of it and of its products with x - centre, else of x - centre and of its squares. */
TARGET FE_INLINE void NAME(add_vectors)(const norm_job *job, span pixels, int64_t c, int64_t vectors, int64_t n, float *sum,
                                        float *product, int of_gradient, int activated) {
    const int64_t channels = job->channels, ahead = n < channels ? (pixels.end - pixels.begin) * channels : 0;
    VEC centre[NAME(wide)] = {0}, first[NAME(wide)] = {0}, second[NAME(wide)] = {0};
    UNROLL(4)
    for (int v = 0; v < vectors; v++) {
        centre[v] = NAME(load)(job->centre + c + v * LANES, LANES);
    }
    for (int64_t i = pixels.begin; i < pixels.end; i++) {
        const float *x = job->x + i * channels + c, *grad = of_gradient ? job->grad + i * channels + c : x;
        const uint8_t *bits = activated ? job->bits + i * bytes_of(channels) + c / 8 : NULL;
        uint32_t word = 0;
        UNROLL(4)
        for (int v = 0; v < vectors; v++) {
            const int64_t lanes = NAME(lanes_of)(v, vectors, n);
            VEC apart = NAME(subtract)(NAME(load)(x + v * LANES, lanes), centre[v]), factor = apart;
            NAME(fetch)(x, v, ahead);
            if (of_gradient) {
                factor = NAME(load)(grad + v * LANES, lanes);
                NAME(fetch)(grad, v, ahead);
            }
            if (activated && v % NAME(group) == 0)
                word = NAME(bits_of)(bits, v, n);
            if (activated)
                factor = NAME(passed)(factor, word >> v % NAME(group) * LANES);
            first[v] = NAME(add)(first[v], factor);
            second[v] = NAME(multiply_add)(factor, apart, second[v]);
        }
    }
    UNROLL(4)
    for (int v = 0; v < vectors; v++) {
        float *to[] = {sum + c + v * LANES, product + c + v * LANES};
        NAME(store)(to[0], NAME(add)(NAME(load)(to[0], LANES), first[v]), LANES);
        NAME(store)(to[1], NAME(add)(NAME(load)(to[1], LANES), second[v]), LANES);
    }
}

/* Sums of a block come together before they join those of other blocks, so that no chain of additions is long. */
TARGET FE_INLINE void NAME(add_sums)(const norm_job *job, span pixels, float *sum, float *product, int of_gradient,
                                     int activated) {
    const int64_t channels = job->channels, block = BLOCK / channels + 1;
    for (int64_t begin = pixels.begin; begin < pixels.end; begin += block) {
        span part = {begin, least_of(begin + block, pixels.end)};
        int64_t c = 0;
        for (; LANES > 1 && c + NAME(wide) * LANES <= channels; c += NAME(wide) * LANES)
            NAME(add_vectors)(job, part, c, NAME(wide), NAME(wide) * LANES, sum, product, of_gradient, activated);
        for (; c < channels; c += NAME(narrow) * LANES) {
            const int64_t n = least_of(channels - c, NAME(narrow) * LANES);
            if (LANES > 1 && n <= LANES)
                NAME(add_vectors)(job, part, c, 1, n, sum, product, of_gradient, activated);
            else
                NAME(add_vectors)(job, part, c, LANES > 1 ? 2 : n, n, sum, product, of_gradient, activated);
        }
    }
}

TARGET static void NAME(add_moments)(const norm_job *job, span pixels, float *sum, float *product) {
    NAME(add_sums)(job, pixels, sum, product, 0, 0);
}

TARGET static void NAME(add_gradients)(const norm_job *job, span pixels, float *sum, float *product) {
    if (LANES == 1)
        NAME(add_sums)(job, pixels, sum, product, 1, job->bits != NULL);
    else if (job->bits)
        NAME(add_sums)(job, pixels, sum, product, 1, 1);
    else
        NAME(add_sums)(job, pixels, sum, product, 1, 0);
}

/* With a gradient its way back through the norm, else the norm. */
TARGET FE_INLINE void NAME(write_vectors)(const norm_job *job, span pixels, int64_t c, int64_t vectors, int64_t n, int of_gradient,
                                          int activated) {
    const int64_t channels = job->channels, ahead = n < channels ? (pixels.end - pixels.begin) * channels : 0;
    const VEC cap = NAME(set)(job->cap);
    for (int64_t i = pixels.begin; i < pixels.end; i++) {
        const float *x = job->x + i * channels + c, *grad = of_gradient ? job->grad + i * channels + c : x;
        float *out = job->out + i * channels + c;
        uint8_t *bits = activated ? job->bits + i * bytes_of(channels) + c / 8 : NULL;
        uint32_t word = 0;
        UNROLL(4)
        for (int v = 0; v < vectors; v++) {
            const int64_t at = c + v * LANES, lanes = NAME(lanes_of)(v, vectors, n);
            const int shift = v % NAME(group) * LANES;
            VEC apart = NAME(subtract)(NAME(load)(x + v * LANES, lanes), NAME(load)(job->centre + at, LANES));
            VEC gain = NAME(load)(job->gain + at, LANES), value = NAME(load)(job->shift + at, LANES);
            NAME(fetch)(x, v, ahead);
            if (of_gradient) {
                VEC slope = NAME(load)(job->slope + at, LANES), passed = NAME(load)(grad + v * LANES, lanes);
                NAME(fetch)(grad, v, ahead);
                if (activated && shift == 0)
                    word = NAME(bits_of)(bits, v, n);
                if (activated)
                    passed = NAME(passed)(passed, word >> shift);
                value = NAME(multiply_add)(passed, gain, NAME(multiply_add)(apart, slope, value));
            } else {
                value = NAME(multiply_add)(apart, gain, value);
                if (activated)
                    word = (shift ? word : 0) | NAME(activate)(&value, cap) << shift;
                if (activated && (v % NAME(group) == NAME(group) - 1 || v == vectors - 1))
                    NAME(set_bits)(bits, v - v % NAME(group), n, word);
            }
            if (job->stream)
                NAME(stream)(out + v * LANES, value);
            else
                NAME(store)(out + v * LANES, value, lanes);
        }
    }
}

TARGET FE_INLINE void NAME(write_all)(const norm_job *job, span pixels, int of_gradient, int activated) {
    const int64_t channels = job->channels, block = BLOCK / channels + 1;
    for (int64_t begin = pixels.begin; begin < pixels.end; begin += block) {
        span part = {begin, least_of(begin + block, pixels.end)};
        int64_t c = 0;
        for (; LANES > 1 && c + NAME(wide) * LANES <= channels; c += NAME(wide) * LANES)
            NAME(write_vectors)(job, part, c, NAME(wide), NAME(wide) * LANES, of_gradient, activated);
        for (; c < channels; c += NAME(narrow) * LANES) {
            const int64_t n = least_of(channels - c, NAME(narrow) * LANES);
            if (LANES > 1 && n <= LANES)
                NAME(write_vectors)(job, part, c, 1, n, of_gradient, activated);
            else
                NAME(write_vectors)(job, part, c, LANES > 1 ? 2 : n, n, of_gradient, activated);
        }
    }
    NAME(fence)();
}

TARGET static void NAME(normalise)(const norm_job *job, span pixels) {
    if (LANES == 1)
        NAME(write_all)(job, pixels, 0, job->bits != NULL);
    else if (job->bits)
        NAME(write_all)(job, pixels, 0, 1);
    else
        NAME(write_all)(job, pixels, 0, 0);
}

TARGET static void NAME(differentiate)(const norm_job *job, span pixels) {
    if (LANES == 1)
        NAME(write_all)(job, pixels, 1, job->bits != NULL);
    else if (job->bits)
        NAME(write_all)(job, pixels, 1, 1);
    else
        NAME(write_all)(job, pixels, 1, 0);
}

static const norm_version NAME(version) = {NAME(add_moments), NAME(add_gradients), NAME(normalise), NAME(differentiate)};
