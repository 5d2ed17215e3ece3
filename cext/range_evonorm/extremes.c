#include "extremes.h"

#include <string.h>

static span chunk_of(const scratch *of, int64_t chunk) { return (span){of->begin[chunk], of->begin[chunk + 1]}; }

/* Extremes of a sample of bytes, of its chunks' groups, and as floats of its channels. */
static void find_bytes(const norm_work *work, const norm_job *job, uint8_t *found, const scratch *of) {
    const byte_version *bytes = work->version->bytes;
    const int64_t chunks = fe_norm_chunks(job->pixels), channels = job->channels, width = channels / job->groups;
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        span pixels = chunk_of(of, chunk);
        bytes->extremes(job->x.bytes + pixels.begin * channels, pixels.end - pixels.begin, channels,
                        of->most_bytes + chunk * channels, of->least_bytes + chunk * channels);
    }
    const norm_job mosts = {.channels = channels, .x = {.bytes = of->most_bytes}};
    const norm_job leasts = {.channels = channels, .x = {.bytes = of->least_bytes}};
    /* What is not asked for goes where gains will be. */
    work->version->extremes(&mosts, (span){0, chunks}, of->top, of->gain, 1);
    work->version->extremes(&leasts, (span){0, chunks}, of->gain, of->bottom, 1);
    bytes->reduce(of->most_bytes, chunks * channels, width, 0);
    bytes->reduce(of->least_bytes, chunks * channels, width, UINT8_MAX);
    for (int64_t i = 0; i < chunks * job->groups; i++) {
        found[2 * i + MAXIMUM] = of->most_bytes[i * width];
        found[2 * i + MINIMUM] = UINT8_MAX - of->least_bytes[i * width];
    }
}

void fe_norm_find(const norm_work *work, const norm_job *job, int64_t sample, const scratch *of) {
    int64_t chunks = fe_norm_chunks(job->pixels), channels = job->channels, block = BLOCK / channels + 1;
    int64_t count = chunks * job->groups, width = channels / job->groups;
    if (of->together) {
        find_bytes(work, job, (uint8_t *)work->extremes + 2 * sample * count, of);
        return;
    }
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        span pixels = chunk_of(of, chunk);
        for (int64_t begin = pixels.begin; begin < pixels.end; begin += block) {
            span part = {begin, least_of(begin + block, pixels.end)};
            work->version->extremes(job, part, of->most + chunk * channels, of->least + chunk * channels,
                                    begin == pixels.begin);
        }
    }
    /* Those of all chunks. What is not asked for goes where gains will be. */
    const norm_job mosts = {.channels = channels, .x = {.floats = of->most}};
    const norm_job leasts = {.channels = channels, .x = {.floats = of->least}};
    work->version->extremes(&mosts, (span){0, chunks}, of->top, of->gain, 1);
    work->version->extremes(&leasts, (span){0, chunks}, of->gain, of->bottom, 1);
    int64_t apart = work->version->reduce(of->most, count, width, MAXIMUM);
    work->version->reduce(of->least, count, width, MINIMUM);
    for (int64_t i = 0; i < count; i++) {
        float found[2] = {of->most[i * apart], of->least[i * apart]};
        for (int which = 0; which < 2; which++)
            if (work->x->bytes)
                ((uint8_t *)work->extremes)[2 * (sample * count + i) + which] = (uint8_t)found[which];
            else
                ((float *)work->extremes)[2 * (sample * count + i) + which] = found[which];
    }
}

static float extreme(const norm_work *work, int64_t sample, int64_t chunk, int64_t group, int which) {
    const fe_range_evonorm *norm = work->norm;
    int64_t at = ((sample * fe_norm_chunks(norm->pixels) + chunk) * norm->groups + group) * 2 + which;
    return work->x->bytes ? (float)((const uint8_t *)work->extremes)[at] : ((const float *)work->extremes)[at];
}

static void fill(float *to, float value, int64_t count) {
    const float eight[] = {value, value, value, value, value, value, value, value};
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
        memcpy(to + i, eight, sizeof eight);
    for (; i < count; i++)
        to[i] = value;
}

static void spread(uint8_t *to, uint8_t value, int64_t width) {
    const uint64_t eight = value * 0x0101010101010101u;
    for (int64_t i = 0; i < width; i += (int64_t)sizeof eight)
        memcpy(to + i, &eight, sizeof eight);
}

/* Where there are fewer channels, the lanes of a vector have those of some pixels. */
static void repeat(uint8_t *lanes, int64_t channels) {
    for (int64_t have = channels; have < MOST_WIDE; have *= 2) {
        uint64_t two[2];
        memcpy(two, lanes, sizeof two);
        memcpy(lanes + have, two, sizeof two);
    }
}

static void locate_bytes(const norm_work *work, const norm_job *job, int64_t sample, const scratch *of) {
    const int64_t chunks = fe_norm_chunks(job->pixels), channels = job->channels, width = channels / job->groups;
    const uint8_t *found = (const uint8_t *)work->extremes + 2 * sample * chunks * job->groups;
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        for (int64_t group = 0; group < job->groups; group++, found += 2) {
            spread(of->most_bytes + group * width, found[MAXIMUM], width);
            spread(of->least_bytes + group * width, found[MINIMUM], width);
        }
        repeat(of->most_bytes, channels);
        repeat(of->least_bytes, channels);
        work->version->bytes->locate(job, chunk_of(of, chunk), of->most_bytes, of->least_bytes, of->most + chunk * channels,
                                     of->least + chunk * channels);
    }
}

static void locate_floats(const norm_work *work, const norm_job *job, int64_t sample, const scratch *of) {
    const int64_t chunks = fe_norm_chunks(job->pixels), channels = job->channels, width = channels / job->groups;
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        float *most = of->most + chunk * channels, *least = of->least + chunk * channels;
        for (int64_t group = 0; group < job->groups; group++) {
            fill(most + group * width, extreme(work, sample, chunk, group, MAXIMUM), width);
            fill(least + group * width, extreme(work, sample, chunk, group, MINIMUM), width);
        }
        work->version->locate(job, chunk_of(of, chunk), most, least);
    }
}

int64_t fe_norm_locate(const norm_work *work, const norm_job *job, int64_t sample, const scratch *of) {
    const int64_t count = fe_norm_chunks(job->pixels) * job->groups, width = job->channels / job->groups;
    if (of->together)
        locate_bytes(work, job, sample, of);
    else
        locate_floats(work, job, sample, of);
    work->version->reduce(of->most, count, width, MINIMUM);
    return work->version->reduce(of->least, count, width, MINIMUM);
}
