/* Extremes of maps of bytes, whole vectors of them at a time: a vector is some channels of a pixel, or all of a few pixels.
 * Included for each instruction set that has such vectors, which defines BYTES, WIDE, and what is done with them. */

/* Pixels of a vector; 0 where vectors would not hold the same channels each. */
static int64_t NAME(pixels_of)(int64_t pixels, int64_t channels) {
    if (channels >= WIDE)
        return 1;
    return WIDE % channels == 0 && pixels * channels >= WIDE ? WIDE / channels : 0;
}

TARGET static void NAME(extremes_of_bytes)(const uint8_t *x, int64_t pixels, int64_t channels, uint8_t *most, uint8_t *least) {
    const int64_t some = NAME(pixels_of)(pixels, channels);
    const BYTES all = NAME(splat)(0xff);
    for (int64_t begin = 0; begin < channels; begin += WIDE) {
        const int64_t c = channels < WIDE ? 0 : least_of(begin, channels - WIDE);
        BYTES top = NAME(splat)(0), bottom = all, value;
        for (int64_t i = 0; i + some <= pixels; i += some) {
            value = NAME(load_wide)(x + i * channels + c);
            top = NAME(greatest)(top, value);
            bottom = NAME(smallest)(bottom, value);
        }
        value = NAME(load_wide)(x + (pixels - some) * channels + c);
        top = NAME(fold)(NAME(greatest)(top, value), channels);
        /* The least is the complement of the greatest complement. */
        bottom = NAME(fold)(NAME(without)(all, NAME(smallest)(bottom, value)), channels);
        NAME(store_wide)(most + c, top);
        NAME(store_wide)(least + c, NAME(without)(all, bottom));
    }
}

/* Every byte, flipped, becomes the greatest of `width` flipped ones from it on, as far as these are of its group. */
TARGET static void NAME(reduce_bytes)(uint8_t *values, int64_t count, int64_t width, uint8_t flip) {
    const BYTES flips = NAME(splat)(flip);
    for (int64_t i = 0; i < count; i += WIDE)
        NAME(store_wide)(values + i, NAME(differing)(NAME(load_wide)(values + i), flips));
    for (int64_t reach = 1; reach < width; reach = least_of(2 * reach, width)) {
        const uint8_t *further = values + least_of(reach, width - reach);
        for (int64_t i = 0; i < count; i += WIDE)
            NAME(store_wide)(values + i, NAME(greatest)(NAME(load_wide)(values + i), NAME(load_wide)(further + i)));
    }
}

/* Where among the pixels each channel first is `most`: as `locate` has it. */
TARGET static __attribute__((noinline)) void NAME(put_places)(float *to, BYTES places, const norm_job *job, int64_t c,
                                                              int64_t first, int is_last) {
    uint8_t lanes[WIDE];
    NAME(store_wide)(lanes, NAME(fold)(places, job->channels));
    const VEC row = NAME(set)((float)job->channels), nowhere = NAME(set)(__builtin_inff()), zero = NAME(set)(0.0f);
    const VEC begin = NAME(set)((float)(first * job->channels)), most = NAME(set)((float)MOST_COUNTED);
    for (int64_t i = 0; i < least_of(WIDE, job->channels); i += LANES) {
        const VEC place = NAME(load_bytes)(lanes + i, LANES);
        const VEC number = NAME(add)(NAME(load)(job->number + c + i, LANES), begin);
        const VEC here = NAME(multiply_add)(NAME(subtract)(most, place), row, number);
        const VEC before = is_last ? nowhere : NAME(load)(to + c + i, LANES);
        NAME(store)(to + c + i, NAME(where_equal)(place, zero, before, here), LANES);
    }
}

/* Where a vector's lanes first were `most` and `least`: MOST_COUNTED less the pixel. */
typedef struct {
    BYTES top, bottom;
} NAME(places);

TARGET FE_INLINE void NAME(compare)(NAME(places) *at, BYTES value, BYTES top, BYTES bottom, BYTES left) {
    at->top = NAME(greatest)(at->top, NAME(where_same)(value, top, left));
    at->bottom = NAME(greatest)(at->bottom, NAME(where_same)(value, bottom, left));
}

/* `count` pixels, of which a vector has `some`. */
TARGET FE_INLINE NAME(places) NAME(find_places)(const uint8_t *x, int64_t count, int64_t step, int64_t some, BYTES top,
                                                BYTES bottom, BYTES start) {
    const BYTES pixels = NAME(splat)((uint8_t)some);
    NAME(places) at = {NAME(splat)(0), NAME(splat)(0)};
    const uint8_t *last = x + (count - some) * step;
    BYTES left = start;
    for (; x <= last; x += some * step, left = NAME(without)(left, pixels))
        NAME(compare)(&at, NAME(load_wide)(x), top, bottom, left);
    NAME(compare)(&at, NAME(load_wide)(last), top, bottom, NAME(without)(start, NAME(splat)((uint8_t)(count - some))));
    return at;
}

TARGET static void NAME(locate_bytes)(const norm_job *job, span pixels, const uint8_t *most, const uint8_t *least,
                                      float *most_at, float *least_at) {
    const int64_t channels = job->channels, count = pixels.end - pixels.begin, some = NAME(pixels_of)(count, channels);
    const BYTES start = NAME(load_wide)(job->countdown);
    /* From the last part on, so that the first place stays. */
    for (int64_t end = count, first; end > 0; end = first) {
        first = least_of(end - some, (end - 1) / MOST_COUNTED * MOST_COUNTED);
        for (int64_t begin = 0; begin < channels; begin += WIDE) {
            const int64_t c = channels < WIDE ? 0 : least_of(begin, channels - WIDE);
            const uint8_t *x = job->x.bytes + (pixels.begin + first) * channels + c;
            const NAME(places) at = NAME(find_places)(x, end - first, channels, some, NAME(load_wide)(most + c),
                                                      NAME(load_wide)(least + c), start);
            NAME(put_places)(most_at, at.top, job, c, first, end == count);
            NAME(put_places)(least_at, at.bottom, job, c, first, end == count);
        }
    }
}

static const byte_version NAME(bytes) = {NAME(pixels_of), NAME(extremes_of_bytes), NAME(reduce_bytes), NAME(locate_bytes)};
