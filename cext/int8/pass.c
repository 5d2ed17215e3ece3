#include "pass.h"

#include <math.h>

static int64_t out_length(const fe_conv *conv, int axis) {
    int64_t length = axis ? conv->width : conv->height;
    return (length + 2 * conv->padding[axis] - conv->dilation[axis] * (conv->kernel[axis] - 1) - 1) / conv->stride[axis] + 1;
}

static int axis_is_valid(const fe_conv *conv, int axis) {
    int64_t length = axis ? conv->width : conv->height;
    return length >= 1 && length <= FE_LONGEST_SIDE && conv->kernel[axis] >= 1 && conv->kernel[axis] <= FE_LONGEST_KERNEL &&
           conv->stride[axis] >= 1 && conv->stride[axis] <= FE_LONGEST_STRIDE && conv->dilation[axis] >= 1 &&
           conv->dilation[axis] <= FE_LONGEST_SIDE && conv->padding[axis] >= 0 &&
           conv->padding[axis] <= (FE_LONGEST_SIDE - length) / 2 &&
           length + 2 * conv->padding[axis] > conv->dilation[axis] * (conv->kernel[axis] - 1);
}

/* Whether so many numbers of eight bytes, with some room around them, can be addressed. */
static int product_fits(const int64_t *factors, int count) {
    int64_t product = 8 * MOST_COLUMNS;
    for (int i = 0; i < count; i++)
        if (__builtin_mul_overflow(product, factors[i], &product))
            return 0;
    return product <= INT64_MAX / 4;
}

int fe_conv_is_valid(const fe_conv *conv) {
    if (conv->images < 1 || conv->inputs < 1 || conv->outputs < 1 || conv->groups < 1 ||
        conv->inputs % conv->groups != 0 || conv->outputs % conv->groups != 0 || !axis_is_valid(conv, 0) ||
        !axis_is_valid(conv, 1))
        return 0;
    int64_t taps = conv->kernel[0] * conv->kernel[1];
    int64_t inputs = conv->inputs / conv->groups, outputs = conv->outputs / conv->groups;
    if (larger(inputs, outputs) > FE_MOST_PRODUCTS / taps)
        return 0;
    /* Whatever is added to channels, rows and columns fits beside them. */
    const int64_t in[] = {conv->images, conv->inputs + conv->groups * MOST_GROUP,
                          conv->height + 2 * conv->padding[0] + MOST_COLUMNS,
                          conv->width + 2 * conv->padding[1] + MOST_COLUMNS};
    const int64_t out[] = {conv->images, conv->outputs + conv->groups * MOST_GROUP,
                           out_length(conv, 0) + conv->dilation[0] * conv->kernel[0],
                           out_length(conv, 1) + conv->dilation[1] * conv->kernel[1]};
    const int64_t weight[] = {conv->groups, taps, inputs + MOST_COLUMNS, outputs + MOST_COLUMNS};
    return product_fits(in, 4) && product_fits(out, 4) && product_fits(weight, 4);
}

static void extend(pass *of, const tap *next) {
    for (int axis = 0; axis < 2; axis++) {
        of->low[axis] = of->taps ? smaller(of->low[axis], next->offset[axis]) : next->offset[axis];
        of->high[axis] = of->taps ? larger(of->high[axis], next->offset[axis]) : next->offset[axis];
    }
    of->tap[of->taps++] = *next;
}

static void forward_taps(pass *of, const fe_conv *conv) {
    of->phases = 1;
    of->phase[0] = (phase){{0, 0}, 0, conv->kernel[0] * conv->kernel[1]};
    for (int64_t i = 0; i < conv->kernel[0]; i++)
        for (int64_t j = 0; j < conv->kernel[1]; j++)
            extend(of, &(tap){{i * conv->dilation[0] - conv->padding[0], j * conv->dilation[1] - conv->padding[1]},
                              (int)(i * conv->kernel[1] + j)});
}

/* Whether tap i of the kernel leads from a cell of this phase to a pixel of the gradient, and to which. */
static int leads(const fe_conv *conv, int axis, int64_t start, int64_t i, int64_t *offset) {
    int64_t from = start + conv->padding[axis] - i * conv->dilation[axis];
    *offset = from / conv->stride[axis];
    return from % conv->stride[axis] == 0;
}

static void transposed_taps(pass *of, const fe_conv *conv) {
    for (int64_t y = 0; y < smaller(conv->stride[0], conv->height); y++)
        for (int64_t x = 0; x < smaller(conv->stride[1], conv->width); x++) {
            phase *next = of->phase + of->phases++;
            *next = (phase){{y, x}, of->taps, 0};
            /* From the last tap on, so that what they read lies one behind the other. */
            for (int64_t i = conv->kernel[0] - 1; i >= 0; i--)
                for (int64_t j = conv->kernel[1] - 1; j >= 0; j--) {
                    tap found = {{0, 0}, (int)(i * conv->kernel[1] + j)};
                    if (leads(conv, 0, y, i, found.offset) && leads(conv, 1, x, j, found.offset + 1))
                        extend(of, &found);
                }
            next->count = of->taps - next->first;
        }
}

void fe_pass_of(pass *of, const fe_conv *conv, int transposed) {
    int64_t maps[2][3] = {{conv->height, conv->width, conv->inputs / conv->groups},
                          {out_length(conv, 0), out_length(conv, 1), conv->outputs / conv->groups}};
    const int64_t *in = maps[transposed], *out = maps[!transposed];
    *of = (pass){
        .images = conv->images,
        .groups = conv->groups,
        .height = in[0],
        .width = in[1],
        .channels = in[2],
        .out_height = out[0],
        .out_width = out[1],
        .out_channels = out[2],
    };
    for (int axis = 0; axis < 2; axis++) {
        of->step[axis] = transposed ? 1 : conv->stride[axis];
        of->out_step[axis] = transposed ? conv->stride[axis] : 1;
        of->grid[axis] = ceiling_of(out[axis], of->out_step[axis]);
    }
    if (transposed)
        transposed_taps(of, conv);
    else
        forward_taps(of, conv);
}

/* Rows of the map that `rows` rows of the grid read. */
static int64_t read_by(const pass *over, int axis, int64_t rows) {
    return (rows - 1) * over->step[axis] + over->high[axis] - over->low[axis] + 1;
}

static int is_inside(const pass *over, int axis) {
    int64_t length = axis ? over->width : over->height;
    return over->low[axis] >= 0 && over->low[axis] + read_by(over, axis, over->grid[axis]) <= length;
}

void fe_bands_of(bands *of, const pass *over, const int8_version *version, int64_t pixels, int64_t bytes) {
    int64_t channels = ceiling_of(over->channels, version->group) * version->group;
    int64_t columns = read_by(over, 1, over->grid[1]), cell = channels * over->groups;
    int64_t row_bytes = columns * cell * version->cell, rows = over->grid[0];
    *of = (bands){.images = 1, .channels = channels, .cell = cell};
    of->direct = is_inside(over, 0) && is_inside(over, 1) && channels == over->channels && version->cell == 1 &&
                 version->flip == 0;
    int64_t in_image = over->grid[0] * over->grid[1], image_bytes = read_by(over, 0, rows) * row_bytes;
    if (in_image <= pixels && image_bytes <= bytes) {
        int64_t most = larger(1, smaller(pixels / in_image, bytes / image_bytes));
        /* Bands of the same size, and an even number of them where there are several: threads are often two or four. */
        int64_t count = ceiling_of(over->images, smaller(most, over->images));
        count += count > 1 ? count % 2 : 0;
        of->images = ceiling_of(over->images, count);
        of->rows = rows;
    } else {
        while (rows > 1 && (rows * over->grid[1] > pixels || read_by(over, 0, rows) * row_bytes > bytes))
            rows--;
        of->rows = ceiling_of(over->grid[0], ceiling_of(over->grid[0], rows));
    }
    of->in_image = ceiling_of(over->grid[0], of->rows);
    of->count = ceiling_of(over->images, of->images) * of->in_image;
    of->pitch = of->direct ? over->width : columns;
    of->image = (of->direct ? over->height : read_by(over, 0, of->rows)) * of->pitch;
    for (int axis = 0; axis < 2; axis++)
        of->low[axis] = of->direct ? 0 : over->low[axis];
    of->bytes = of->direct ? 0 : of->images * of->image * cell * version->cell;
}

static void fill(void *to, int64_t count, int64_t cell, int value) {
    if (cell == 1) {
        memset(to, value, (size_t)count);
        return;
    }
    uint16_t *words = to;
    for (int64_t i = 0; i < count; i++)
        words[i] = (uint16_t)value;
}

static void copy_cells(void *to, const uint8_t *from, int64_t count, const bands *all, const pass *over,
                       const int8_version *version) {
    if (all->channels == over->channels) {
        version->cells(to, from, count * all->cell);
        return;
    }
    const int64_t cells = count * over->groups;
    int64_t i = 0;
    /* What is behind the channels of a cell is multiplied by zeros. */
    if (all->channels == 4 && version->cell == 1 && version->flip == 0)
        for (; i * over->channels + 4 <= cells * over->channels; i++)
            memcpy((char *)to + 4 * i, from + i * over->channels, 4);
    for (; i < cells; i++)
        version->cells((char *)to + i * all->channels * version->cell, from + i * over->channels, over->channels);
}

static void copy_row(char *to, const uint8_t *image, int64_t row, const bands *all, const pass *over,
                     const int8_version *version, int zero) {
    int64_t size = all->cell * version->cell, columns = all->pitch;
    int64_t left = row < 0 || row >= over->height ? columns : smaller(columns, larger(0, -over->low[1]));
    int64_t first = larger(0, over->low[1]), inside = larger(0, smaller(columns - left, over->width - first));
    fill(to, left * all->cell, version->cell, zero ^ version->flip);
    if (inside)
        copy_cells(to + left * size, image + (row * over->width + first) * over->channels * over->groups, inside, all, over,
                   version);
    fill(to + (left + inside) * size, (columns - left - inside) * all->cell, version->cell, zero ^ version->flip);
}

void fe_band_of(band *of, int64_t i, const bands *all, const pass *over, const int8_version *version, const uint8_t *x,
                int zero, void *copy) {
    int64_t image = i / all->in_image * all->images, row = i % all->in_image * all->rows;
    *of = (band){
        .image = image,
        .row = row,
        .images = smaller(all->images, over->images - image),
        .rows = smaller(all->rows, over->grid[0] - row),
    };
    int64_t map = over->height * over->width * over->channels * over->groups;
    int64_t begin = row * over->step[0];
    if (all->direct) {
        of->cells = x + image * map + begin * over->width * all->cell;
        return;
    }
    of->cells = copy;
    int64_t row_bytes = all->pitch * all->cell * version->cell, rows = read_by(over, 0, of->rows);
    for (int64_t n = 0; n < of->images; n++)
        for (int64_t r = 0; r < rows; r++)
            copy_row((char *)copy + n * all->image * all->cell * version->cell + r * row_bytes, x + (image + n) * map,
                     begin + over->low[0] + r, all, over, version, zero);
}

int fe_goes_past(const float *floats, const pass *over, int64_t together, int64_t least) {
    enum { LINE = 64 };
    const int64_t pixels = over->images * over->out_height * over->out_width;
    const int64_t bytes = pixels * over->groups * over->out_channels * (int64_t)sizeof *floats;
    return floats && (uintptr_t)floats % LINE == 0 && together * (int64_t)sizeof *floats % LINE == 0 && bytes >= least;
}

float fe_doubt(const fe_packed *packed, float scale, const float *bias, int64_t channels) {
    int strange = 0;
    for (int64_t c = 0; c < channels; c++)
        strange |= !isfinite(scale * packed->scales[c]) | !isfinite(bias ? bias[c] : 0.0f);
    return strange ? NAN : 0.0f;
}
