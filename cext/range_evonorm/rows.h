/* Kernels whose lanes are channels. Included once for each instruction set, which defines VEC, LANES, NAME, TARGET and the
 * primitives. Whether maps hold bytes is a compile-time constant of the inlined functions. */

TARGET FE_INLINE VEC NAME(read)(const fe_norm_map *map, int64_t at, int64_t n, int bytes) {
    if (bytes)
        return NAME(subtract)(NAME(load_bytes)(map->bytes + at, n), NAME(set)(map->zero));
    return NAME(load)(map->floats + at, n);
}

/* Across the borders of pages, which the hardware heeds. Narrow vectors would ask for every line too often. */
TARGET FE_INLINE void NAME(fetch)(const fe_norm_map *map, int64_t at, int64_t n, int bytes) {
    if (LANES >= 8 && n == LANES)
        __builtin_prefetch(bytes ? (const void *)(map->bytes + at + FAR) : map->floats + at + FAR);
}

/* As in memory. */
TARGET FE_INLINE VEC NAME(raw)(const fe_norm_map *map, int64_t at, int64_t n, int bytes) {
    return bytes ? NAME(load_bytes)(map->bytes + at, n) : NAME(load)(map->floats + at, n);
}

TARGET FE_INLINE void NAME(extremes_of_lanes)(const norm_job *job, span pixels, float *most, float *least, int is_first,
                                              int64_t c, int64_t n, int bytes) {
    const int64_t channels = job->channels;
    VEC top = is_first ? NAME(set)(-__builtin_inff()) : NAME(load)(most + c, n);
    VEC bottom = is_first ? NAME(set)(__builtin_inff()) : NAME(load)(least + c, n);
    for (int64_t i = pixels.begin; i < pixels.end; i++) {
        VEC x = NAME(raw)(&job->x, i * channels + c, n, bytes);
        top = NAME(maximum)(x, top);
        bottom = NAME(minimum)(x, bottom);
    }
    NAME(store)(most + c, top, n);
    NAME(store)(least + c, bottom, n);
}

/* Whole vectors have a loop of their own, which asks for no number of lanes. */
TARGET FE_INLINE void NAME(extremes_of)(const norm_job *job, span pixels, float *most, float *least, int is_first, int bytes) {
    int64_t c = 0;
    for (; c + LANES <= job->channels; c += LANES)
        NAME(extremes_of_lanes)(job, pixels, most, least, is_first, c, LANES, bytes);
    if (c < job->channels)
        NAME(extremes_of_lanes)(job, pixels, most, least, is_first, c, job->channels - c, bytes);
}

TARGET static void NAME(extremes)(const norm_job *job, span pixels, float *most, float *least, int is_first) {
    if (job->x.bytes)
        NAME(extremes_of)(job, pixels, most, least, is_first, 1);
    else
        NAME(extremes_of)(job, pixels, most, least, is_first, 0);
}

TARGET FE_INLINE VEC NAME(extreme)(VEC a, VEC b, int which) {
    return which == MAXIMUM ? NAME(maximum)(a, b) : NAME(minimum)(a, b);
}

TARGET FE_INLINE int64_t NAME(reduce_of)(float *values, int64_t count, int64_t width, int which) {
    if (width > LANES) {
        /* Down to a vector for each group, side by side. */
        for (int64_t group = 0; group < count; group++) {
            const float *from = values + group * width;
            VEC found = NAME(load)(from, LANES);
            for (int64_t i = LANES; i < width; i += LANES)
                found = NAME(extreme)(found, NAME(load)(from + least_of(i, width - LANES), LANES), which);
            NAME(store)(values + group * LANES, found, LANES);
        }
        width = LANES;
    }
    /* Every float becomes the extreme of `reach` floats from it on, for all groups at once; what crosses the border of a group
     * is not looked at. */
    for (int64_t reach = 1; reach < width; reach = least_of(2 * reach, width)) {
        int64_t distance = least_of(reach, width - reach);
        for (int64_t i = 0; i < count * width; i += LANES) {
            int64_t n = least_of(count * width - i, LANES);
            VEC found = NAME(extreme)(NAME(load)(values + i, n), NAME(load)(values + i + distance, n), which);
            NAME(store)(values + i, found, n);
        }
    }
    return width;
}

TARGET static int64_t NAME(reduce)(float *values, int64_t count, int64_t width, int which) {
    if (which == MAXIMUM)
        return NAME(reduce_of)(values, count, width, MAXIMUM);
    return NAME(reduce_of)(values, count, width, MINIMUM);
}

TARGET FE_INLINE void NAME(widen)(float *bounds, VEC lowest, VEC highest) {
    float low[LANES], high[LANES];
    NAME(store)(low, lowest, LANES);
    NAME(store)(high, highest, LANES);
    for (int i = 0; i < LANES; i++) {
        bounds[0] = low[i] < bounds[0] ? low[i] : bounds[0];
        bounds[1] = high[i] > bounds[1] ? high[i] : bounds[1];
    }
}

/* Pixels [begin, end) of `n` channels from c on; the least and the greatest y are found where these are asked for. */
TARGET FE_INLINE void NAME(normalise_lanes)(const norm_job *job, int64_t begin, int64_t end, int64_t c, int64_t n, VEC *lowest,
                                            VEC *highest, int x_bytes, int y_bytes, int bounded) {
    const int64_t channels = job->channels;
    const fe_norm_map map = job->x, out = job->y;
    const VEC zero = NAME(set)(0.0f), one = NAME(set)(1.0f), offset = NAME(set)(job->offset);
    const VEC inverse = NAME(set)(job->inverse_scale), y_zero = NAME(set)(job->y.zero);
    const VEC gain = NAME(load)(job->gain + c, n), shift = NAME(load)(job->shift + c, n);
    const VEC slope = NAME(load)(job->slope + c, n);
    VEC low = *lowest, high = *highest;
    for (int64_t i = begin; i < end; i++) {
        VEC x = NAME(read)(&map, i * channels + c, n, x_bytes);
        VEC u = NAME(multiply_add)(x, slope, offset);
        VEC gate = NAME(minimum)(NAME(maximum)(u, zero), one);
        VEC y = NAME(multiply_add)(NAME(multiply)(x, gate), gain, shift);
        if (bounded) {
            low = NAME(minimum)(y, low);
            high = NAME(maximum)(y, high);
        }
        if (y_bytes)
            NAME(store_bytes)(out.bytes + i * channels + c, NAME(multiply_add)(y, inverse, y_zero), n);
        else
            NAME(store)(out.floats + i * channels + c, y, n);
    }
    *lowest = low, *highest = high;
}

TARGET FE_INLINE void NAME(normalise_of)(norm_job *job, int x_bytes, int y_bytes, int bounded) {
    const int64_t channels = job->channels, block = BLOCK / channels + 1;
    VEC lowest = NAME(set)(0.0f), highest = lowest;
    for (int64_t begin = 0; begin < job->pixels; begin += block) {
        int64_t end = least_of(begin + block, job->pixels), c = 0;
        for (; c + LANES <= channels; c += LANES)
            NAME(normalise_lanes)(job, begin, end, c, LANES, &lowest, &highest, x_bytes, y_bytes, bounded);
        if (c < channels)
            NAME(normalise_lanes)(job, begin, end, c, channels - c, &lowest, &highest, x_bytes, y_bytes, bounded);
    }
    if (bounded)
        NAME(widen)(job->bounds, lowest, highest);
}

TARGET static void NAME(normalise)(norm_job *job) {
    if (job->x.bytes && job->y.bytes && job->is_bounded)
        NAME(normalise_of)(job, 1, 1, 0);
    else if (job->x.bytes && job->y.bytes)
        NAME(normalise_of)(job, 1, 1, 1);
    else if (job->x.bytes)
        NAME(normalise_of)(job, 1, 0, 1);
    else if (job->y.bytes)
        NAME(normalise_of)(job, 0, 1, 1);
    else
        NAME(normalise_of)(job, 0, 0, 1);
}

#ifndef HAS_GATE
/* clip(u, 0, 1), and what decides it. */
typedef struct {
    VEC u, value;
} NAME(gate);

TARGET FE_INLINE NAME(gate) NAME(gate_of)(VEC u) {
    return (NAME(gate)){u, NAME(minimum)(NAME(maximum)(u, NAME(set)(0.0f)), NAME(set)(1.0f))};
}
TARGET FE_INLINE VEC NAME(through)(const NAME(gate) *gate, VEC x) { return NAME(multiply)(x, gate->value); }
/* sum + a * b where the gate is neither open nor shut. */
TARGET FE_INLINE VEC NAME(add_within)(const NAME(gate) *gate, VEC a, VEC b, VEC sum) {
    return NAME(multiply_add)(NAME(within)(gate->u, a), b, sum);
}
/* d times the slope of x clip(u, 0, 1), where u is `inner` and an offset. */
TARGET FE_INLINE VEC NAME(sloped)(const NAME(gate) *gate, VEC d, VEC inner) {
    return NAME(multiply)(d, NAME(add)(gate->value, NAME(within)(gate->u, inner)));
}
#endif
#undef HAS_GATE

TARGET FE_INLINE void NAME(differentiate_lanes)(const norm_job *job, const norm_sums *sums, int64_t begin, int64_t end,
                                                int64_t c, int64_t n, VEC *lowest, VEC *highest, int x_bytes, int grad_bytes) {
    const int64_t channels = job->channels;
    const fe_norm_map map = job->x, error = job->grad;
    float *out = job->dx;
    const VEC offset = NAME(set)(job->offset);
    const VEC gain = NAME(load)(job->gain + c, n), slope = NAME(load)(job->slope + c, n);
    VEC grad_n = NAME(load)(sums->grad_n + c, n), grad = NAME(load)(sums->grad + c, n);
    VEC grad_x_x = NAME(load)(sums->grad_x_x + c, n), low = *lowest, high = *highest;
    for (int64_t i = begin; i < end; i++) {
        NAME(fetch)(&map, i * channels + c, n, x_bytes);
        NAME(fetch)(&error, i * channels + c, n, grad_bytes);
        VEC x = NAME(read)(&map, i * channels + c, n, x_bytes);
        VEC d = NAME(read)(&error, i * channels + c, n, grad_bytes);
        VEC inner = NAME(multiply)(x, slope), u = NAME(add)(inner, offset);
        const NAME(gate) gate = NAME(gate_of)(u);
        grad_n = NAME(multiply_add)(d, NAME(through)(&gate, x), grad_n);
        grad = NAME(add)(grad, d);
        grad_x_x = NAME(add_within)(&gate, NAME(multiply)(d, x), x, grad_x_x);
        VEC dx = NAME(sloped)(&gate, NAME(multiply)(d, gain), inner);
        low = NAME(minimum)(dx, low);
        high = NAME(maximum)(dx, high);
        NAME(store)(out + i * channels + c, dx, n);
    }
    NAME(store)(sums->grad_n + c, grad_n, n);
    NAME(store)(sums->grad + c, grad, n);
    NAME(store)(sums->grad_x_x + c, grad_x_x, n);
    *lowest = low, *highest = high;
}

TARGET FE_INLINE void NAME(differentiate_of)(norm_job *job, const norm_sums *sums, int x_bytes, int grad_bytes) {
    const int64_t channels = job->channels, block = BLOCK / channels + 1;
    VEC lowest = NAME(set)(0.0f), highest = lowest;
    for (int64_t begin = 0; begin < job->pixels; begin += block) {
        int64_t end = least_of(begin + block, job->pixels), c = 0;
        for (; c + LANES <= channels; c += LANES)
            NAME(differentiate_lanes)(job, sums, begin, end, c, LANES, &lowest, &highest, x_bytes, grad_bytes);
        if (c < channels)
            NAME(differentiate_lanes)(job, sums, begin, end, c, channels - c, &lowest, &highest, x_bytes, grad_bytes);
    }
    NAME(widen)(job->bounds, lowest, highest);
}

TARGET static void NAME(differentiate)(norm_job *job, const norm_sums *sums) {
    if (job->x.bytes && job->grad.bytes)
        NAME(differentiate_of)(job, sums, 1, 1);
    else if (job->x.bytes)
        NAME(differentiate_of)(job, sums, 1, 0);
    else if (job->grad.bytes)
        NAME(differentiate_of)(job, sums, 0, 1);
    else
        NAME(differentiate_of)(job, sums, 0, 0);
}

TARGET FE_INLINE void NAME(locate_of)(const norm_job *job, span pixels, float *most, float *least, int bytes) {
    const int64_t channels = job->channels;
    const VEC row = NAME(set)((float)channels), one = NAME(set)(1.0f), nowhere = NAME(set)(__builtin_inff());
    for (int64_t c = 0; c < channels; c += LANES) {
        int64_t n = least_of(channels - c, LANES);
        VEC top = NAME(load)(most + c, n), bottom = NAME(load)(least + c, n), top_at = nowhere, bottom_at = nowhere;
        VEC pixel = NAME(set)((float)(pixels.end - pixels.begin));
        /* Backwards, so that the first stays. */
        for (int64_t i = pixels.end - 1; i >= pixels.begin; i--) {
            VEC x = NAME(raw)(&job->x, i * channels + c, n, bytes);
            pixel = NAME(subtract)(pixel, one);
            top_at = NAME(where_equal)(x, top, pixel, top_at);
            bottom_at = NAME(where_equal)(x, bottom, pixel, bottom_at);
        }
        VEC channel = NAME(load)(job->number + c, n);
        NAME(store)(most + c, NAME(multiply_add)(top_at, row, channel), n);
        NAME(store)(least + c, NAME(multiply_add)(bottom_at, row, channel), n);
    }
}

TARGET static void NAME(locate)(const norm_job *job, span pixels, float *most, float *least) {
    if (job->x.bytes)
        NAME(locate_of)(job, pixels, most, least, 1);
    else
        NAME(locate_of)(job, pixels, most, least, 0);
}

/* As in `normalise`, but that a NaN stays one, and that every product is rounded, as on CPUs that do not fuse them. */
TARGET FE_INLINE VEC NAME(value_of)(const norm_job *job, int64_t c, int64_t n, VEC x) {
    VEC u = NAME(add)(NAME(multiply)(NAME(load)(job->slope + c, n), x), NAME(set)(job->offset));
    VEC gate = NAME(minimum)(NAME(maximum)(u, NAME(set)(0.0f)), NAME(set)(1.0f));
    VEC scaled = NAME(multiply)(NAME(load)(job->gain + c, n), NAME(multiply)(x, NAME(where_equal)(u, u, gate, u)));
    return NAME(add)(scaled, NAME(load)(job->shift + c, n));
}

/* The same on all CPUs: wider vectors may do without their own. */
TARGET static __attribute__((unused)) float NAME(bound)(norm_job *job, const float *top, const float *bottom,
                                                        const float *turn) {
    const VEC none = NAME(set)(0.0f), zero = NAME(set)(job->x.bytes ? job->x.zero : 0.0f);
    VEC low = none, high = none, doubt = none;
    for (int64_t c = 0; c < job->channels; c += LANES) {
        int64_t n = least_of(job->channels - c, LANES);
        VEC least = NAME(subtract)(NAME(load)(bottom + c, n), zero), most = NAME(subtract)(NAME(load)(top + c, n), zero);
        VEC between = NAME(minimum)(NAME(maximum)(NAME(load)(turn + c, n), least), most);
        const VEC at[] = {least, most, between};
        for (int i = 0; i < 3; i++) {
            VEC y = NAME(value_of)(job, c, n, at[i]);
            low = NAME(minimum)(y, low);
            high = NAME(maximum)(y, high);
            doubt = NAME(add)(doubt, NAME(multiply)(y, none));
        }
    }
    NAME(widen)(job->bounds, low, high);
    float doubts[LANES], sum = 0.0f;
    NAME(store)(doubts, doubt, LANES);
    for (int i = 0; i < LANES; i++)
        sum += doubts[i];
    return sum;
}

static const norm_version NAME(version) = {NAME(extremes), NAME(reduce), NAME(normalise), NAME(differentiate),
                                           NAME(locate),   BOUND,         BYTE_VERSION};
#undef BOUND
#undef BYTE_VERSION
#undef BYTES
#undef WIDE
