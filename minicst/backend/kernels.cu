// The GPU's kernels of minicst, in plain CUDA.
//
// Compiled once for every dtype: -DREAL=float or -DREAL=double, with --fmad=false, so that products
// and sums are rounded one by one, as NumPy rounds them. tests/kernel_emulation.py compiles the
// same text for a CPU. The rules that make both possible, and a run repeat bit for bit:
//   - A thread works for itself: nothing is shared in a block, nobody waits, one writer a number.
//   - A sum is a gather in a fixed order, by the thread that writes it.
//   - Sizes and indices are long long; scalars are long long or double, cast to REAL where they
//     meet REAL numbers. Nothing is included.
//   - Arrays are in C order: activations (n, h, w, c), depthwise filters (c, kh, kw). A pointer
//     marked "or 0" may be null.

#ifndef REAL
#define REAL float
#endif

#define ROWS_IN_REAL 32  // numbers added in REAL before their sum goes on in double
#define LANES 8          // numbers that one thread reads at a time, so that its reads overlap

// ---- Pieces of kernels ------------------------------------------------------------------------

// Number of this thread, in grids of one dimension.
__device__ long long thread_number() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }

// max(value, 0); NaN stays NaN, as in numpy.maximum.
__device__ REAL positive_part(REAL value) { return value < 0 ? (REAL)0 : value; }

// 1 where out > 0, else 0: the factor by which ReLU passes a gradient on.
__device__ REAL gate(REAL out) { return (REAL)(out > 0 ? 1 : 0); }

// Place (image, y, x, channel) of number i of an (n, height, width, c) array.
struct Place {
    long long image, y, x, channel;
};

__device__ Place place_of(long long i, long long height, long long width, long long c) {
    Place at;
    at.channel = i % c;
    i /= c;
    at.x = i % width;
    i /= width;
    at.y = i % height;
    at.image = i / height;
    return at;
}

// Windows that read pixel `at` of one axis, `count` of them: window `last` by tap `first`, window
// last - 1 by tap first + stride, and so on.
struct Reach {
    long long last, first, count;
};

__device__ Reach windows_over(
    long long at, long long n_windows, long long kernel, long long stride, long long padding
) {
    Reach reach;
    reach.last = (at + padding) / stride;
    if (reach.last > n_windows - 1) reach.last = n_windows - 1;
    reach.first = at + padding - reach.last * stride;
    reach.count = reach.first < kernel ? (kernel - 1 - reach.first) / stride + 1 : 0;
    if (reach.count > reach.last + 1) reach.count = reach.last + 1;
    return reach;
}

// Sum over segments of partial[segment, which, channel], partial (segments, 2, c).
__device__ double sum_of_segments(
    const double* partial, long long which, long long channel, long long c, long long segments
) {
    double sums[LANES];
#pragma unroll
    for (long long k = 0; k < LANES; ++k) sums[k] = 0;
    long long s = 0;
    for (; s + LANES <= segments; s += LANES) {
#pragma unroll
        for (long long k = 0; k < LANES; ++k) {
            sums[k] += partial[(2 * (s + k) + which) * c + channel];
        }
    }
    double sum = 0;
    for (; s < segments; ++s) sum += partial[(2 * s + which) * c + channel];
#pragma unroll
    for (long long k = 0; k < LANES; ++k) sum += sums[k];
    return sum;
}

// ---- Elementwise and optimizers: one thread a number -----------------------------------------

// out = a + b, or max(a + b, 0).
extern "C" __global__ void add(
    const REAL* a, const REAL* b, REAL* out, long long n, long long relu
) {
    long long i = thread_number();
    if (i >= n) return;
    REAL sum = a[i] + b[i];
    out[i] = relu ? positive_part(sum) : sum;
}

// out = max(x, 0).
extern "C" __global__ void relu(const REAL* x, REAL* out, long long n) {
    long long i = thread_number();
    if (i >= n) return;
    out[i] = positive_part(x[i]);
}

// grad_x = grad_out (out > 0).
extern "C" __global__ void relu_backward(
    const REAL* grad_out, const REAL* out, REAL* grad_x, long long n
) {
    long long i = thread_number();
    if (i >= n) return;
    grad_x[i] = grad_out[i] * gate(out[i]);
}

// g = grad + weight_decay w;  v = momentum v + g;  w -= lr (v, or g + momentum v with nesterov).
// velocity or 0: then w -= lr g.
extern "C" __global__ void sgd(
    REAL* weight, const REAL* grad, REAL* velocity, long long n,
    double lr, double momentum, double weight_decay, long long nesterov
) {
    long long i = thread_number();
    if (i >= n) return;
    REAL w = weight[i], update = grad[i];
    if (weight_decay != 0) update = w * (REAL)weight_decay + update;
    if (velocity) {
        REAL v = velocity[i] * (REAL)momentum + update;
        velocity[i] = v;
        update = nesterov ? update + v * (REAL)momentum : v;
    }
    weight[i] = w - update * (REAL)lr;
}

// m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;
// w -= lr_corrected m / (sqrt(v / correct2) + eps)
// with g = grad + weight_decay w, lr_corrected = lr / (1 - b1^step), correct2 = 1 - b2^step.
extern "C" __global__ void adam(
    REAL* weight, const REAL* grad, REAL* first, REAL* second, long long n,
    double lr_corrected, double beta1, double beta2, double correct2, double eps,
    double weight_decay
) {
    long long i = thread_number();
    if (i >= n) return;
    REAL w = weight[i], g = grad[i];
    if (weight_decay != 0) g = g + (REAL)weight_decay * w;
    REAL m = first[i] * (REAL)beta1 + (REAL)(1 - beta1) * g;
    REAL v = second[i] * (REAL)beta2 + (REAL)(1 - beta2) * g * g;
    first[i] = m;
    second[i] = v;
    weight[i] = w - (REAL)lr_corrected * m / (sqrt(v / (REAL)correct2) + (REAL)eps);
}

// ---- Convolution: columns and back ------------------------------------------------------------

// row[at], or 0 outside of the row. Something is read in any case, so that several reads overlap.
__device__ REAL number_of_row(const REAL* row, long long at, long long size) {
    bool inside = at >= 0 && at < size;
    REAL value = row[inside ? at : 0];
    return inside ? value : (REAL)0;
}

// col[(n, oy, ox), (ky, kx, c)] = x[n, oy stride + ky - padding, ox stride + kx - padding, c], or
// 0 outside of x. Rows of threads: a run is one row ky of one window, kw c numbers side by side in
// col and in x.
extern "C" __global__ void im2col(
    const REAL* __restrict__ x, REAL* __restrict__ col, long long runs,
    long long h, long long w, long long c, long long oh, long long ow,
    long long kh, long long kw, long long stride, long long padding
) {
    long long run = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (run >= runs) return;
    long long ky = run % kh, pixel = run / kh;
    long long ox = pixel % ow, oy = pixel / ow % oh, image = pixel / ow / oh;
    long long iy = oy * stride + ky - padding;
    long long width = kw * c, step = blockDim.x, j = threadIdx.x;
    REAL* to = col + run * width;
    if (iy < 0 || iy >= h || w == 0) {
        for (; j < width; j += step) to[j] = 0;
        return;
    }
    const REAL* row = x + (image * h + iy) * w * c;
    long long first = (ox * stride - padding) * c;  // where the run starts in the row
    for (; j + 3 * step < width; j += 4 * step) {
        REAL values[4];
#pragma unroll
        for (long long k = 0; k < 4; ++k) {
            values[k] = number_of_row(row, first + j + k * step, w * c);
        }
#pragma unroll
        for (long long k = 0; k < 4; ++k) to[j + k * step] = values[k];
    }
    for (; j < width; j += step) to[j] = number_of_row(row, first + j, w * c);
}

// x[n, y, x, c] = sum of the columns that im2col filled from it, ky then kx ascending.
// Rows of threads: one row a pixel, over its channels.
extern "C" __global__ void col2im(
    const REAL* __restrict__ col, REAL* __restrict__ x, long long pixels,
    long long h, long long w, long long c, long long oh, long long ow,
    long long kh, long long kw, long long stride, long long padding
) {
    long long pixel = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (pixel >= pixels) return;
    long long image = pixel / w / h;
    Reach ys = windows_over(pixel / w % h, oh, kh, stride, padding);
    Reach xs = windows_over(pixel % w, ow, kw, stride, padding);
    for (long long j = threadIdx.x; j < c; j += blockDim.x) {
        REAL sum = 0;
        for (long long a = 0; a < ys.count; ++a) {
            long long windows = (image * oh + ys.last - a) * ow + xs.last;
            long long ky = ys.first + a * stride;
#pragma unroll 3
            for (long long b = 0; b < xs.count; ++b) {
                long long kx = xs.first + b * stride;
                sum += col[(((windows - b) * kh + ky) * kw + kx) * c + j];
            }
        }
        x[pixel * c + j] = sum;
    }
}

// ---- Depthwise convolution --------------------------------------------------------------------

// out[n, oy, ox, c] = sum_{ky, kx} x[n, oy stride + ky - padding, ...kx..., c] weight[c, ky, kx]
// + bias[c] (bias or 0); one thread a number, total = n oh ow c.
extern "C" __global__ void depthwise(
    const REAL* x, const REAL* weight, const REAL* bias, REAL* out, long long total,
    long long h, long long w, long long c, long long oh, long long ow,
    long long kh, long long kw, long long stride, long long padding
) {
    long long i = thread_number();
    if (i >= total) return;
    Place at = place_of(i, oh, ow, c);
    REAL sum = 0;
    for (long long ky = 0; ky < kh; ++ky) {
        long long iy = at.y * stride + ky - padding;
        if (iy < 0 || iy >= h) continue;
        for (long long kx = 0; kx < kw; ++kx) {
            long long ix = at.x * stride + kx - padding;
            if (ix < 0 || ix >= w) continue;
            REAL value = x[((at.image * h + iy) * w + ix) * c + at.channel];
            sum += value * weight[(at.channel * kh + ky) * kw + kx];
        }
    }
    out[i] = bias ? sum + bias[at.channel] : sum;
}

// grad_x: every pixel gathers grad_out times the tap, ky then kx ascending, from the windows that
// read it; one thread a number, total = n h w c.
extern "C" __global__ void depthwise_grad_input(
    const REAL* grad_out, const REAL* weight, REAL* grad_x, long long total,
    long long h, long long w, long long c, long long oh, long long ow,
    long long kh, long long kw, long long stride, long long padding
) {
    long long i = thread_number();
    if (i >= total) return;
    Place at = place_of(i, h, w, c);
    Reach ys = windows_over(at.y, oh, kh, stride, padding);
    Reach xs = windows_over(at.x, ow, kw, stride, padding);
    REAL sum = 0;
    for (long long a = 0; a < ys.count; ++a) {
        long long windows = (at.image * oh + ys.last - a) * ow + xs.last;
        long long taps = (at.channel * kh + ys.first + a * stride) * kw + xs.first;
#pragma unroll 3
        for (long long b = 0; b < xs.count; ++b) {
            sum += grad_out[(windows - b) * c + at.channel] * weight[taps + b * stride];
        }
    }
    grad_x[i] = sum;
}

// partial[segment, tap, c] = sum over the segment's output pixels of x (at the tap) grad_out.
// One thread a number of partial; segment s covers pixels s n oh ow / segments and on.
extern "C" __global__ void depthwise_grad_weight(
    const REAL* x, const REAL* grad_out, double* partial, long long n,
    long long h, long long w, long long c, long long oh, long long ow,
    long long kh, long long kw, long long stride, long long padding, long long segments
) {
    long long i = thread_number();
    if (i >= segments * kh * kw * c) return;
    long long channel = i % c, tap = i / c % (kh * kw), segment = i / c / (kh * kw);
    long long ky = tap / kw, kx = tap % kw;
    // Windows of a row whose tap lies in x: those from `left` on, below `right`.
    long long left = kx < padding ? (padding - kx + stride - 1) / stride : 0;
    long long right = kx < w + padding ? (w + padding - kx - 1) / stride + 1 : 0;
    long long pixels = n * oh * ow;
    long long pixel = segment * pixels / segments, stop = (segment + 1) * pixels / segments;
    long long ox = pixel % ow, oy = pixel / ow % oh, image = pixel / ow / oh;
    double total = 0;
    while (pixel < stop) {  // row of windows after row of windows
        long long start = pixel - ox;
        long long iy = oy * stride + ky - padding;
        if (iy >= 0 && iy < h) {
            long long end = stop - start < right ? stop - start : right;
            if (end > ow) end = ow;
            const REAL* of_x = x + (((image * h + iy) * w) + kx - padding) * c + channel;
            const REAL* of_g = grad_out + start * c + channel;
            ox = ox > left ? ox : left;
            while (ox < end) {
                REAL sum = 0;
                long long pause = ox + ROWS_IN_REAL < end ? ox + ROWS_IN_REAL : end;
#pragma unroll 4
                for (; ox < pause; ++ox) sum += of_x[ox * stride * c] * of_g[ox * c];
                total += sum;
            }
        }
        pixel = start + ow;
        ox = 0;
        if (++oy == oh) {
            oy = 0;
            ++image;
        }
    }
    partial[i] = total;
}

// grad[c, tap] = sum of partial[segment, tap, c] over segments, ascending; one thread a number.
extern "C" __global__ void depthwise_weight_sums(
    const double* partial, REAL* grad, long long c, long long taps, long long segments
) {
    long long i = thread_number();
    if (i >= c * taps) return;
    long long channel = i % c, tap = i / c;
    double sum = 0;
    for (long long s = 0; s < segments; ++s) sum += partial[(s * taps + tap) * c + channel];
    grad[channel * taps + tap] = (REAL)sum;
}

// ---- Batch norm: x is (rows, c) ---------------------------------------------------------------

// Of each segment and channel, with d = x - x[0]: partial[segment, 0, c] = sum d and
// partial[segment, 1, c] = sum d^2. One thread a segment and channel; segment s covers rows
// s rows / segments and on. The shift by x[0] keeps E[d^2] - E[d]^2 from cancelling.
extern "C" __global__ void bn_sums(
    const REAL* x, double* partial, long long rows, long long c, long long segments
) {
    long long i = thread_number();
    if (i >= segments * c) return;
    long long channel = i % c, segment = i / c;
    long long row = segment * rows / segments, stop = (segment + 1) * rows / segments;
    REAL shift = x[channel];
    double total = 0, total_squares = 0;
    while (row < stop) {
        REAL sum = 0, squares = 0;
        long long pause = row + ROWS_IN_REAL < stop ? row + ROWS_IN_REAL : stop;
#pragma unroll 8
        for (; row < pause; ++row) {
            REAL d = x[row * c + channel] - shift;
            sum += d;
            squares += d * d;
        }
        total += sum;
        total_squares += squares;
    }
    partial[2 * segment * c + channel] = total;
    partial[(2 * segment + 1) * c + channel] = total_squares;
}

// mean = x[0] + E[d], variance = max(E[d^2] - E[d]^2, 0), from the sums of bn_sums, in double; one
// thread a channel.
extern "C" __global__ void bn_statistics(
    const double* partial, const REAL* x, REAL* mean, REAL* variance,
    long long rows, long long c, long long segments
) {
    long long channel = thread_number();
    if (channel >= c) return;
    double moved = sum_of_segments(partial, 0, channel, c, segments) / rows;
    double spread = sum_of_segments(partial, 1, channel, c, segments) / rows - moved * moved;
    mean[channel] = (REAL)(x[channel] + moved);
    variance[channel] = (REAL)(spread < 0 ? 0 : spread);
}

// inv_std = 1 / sqrt(variance + eps), scale = gamma inv_std, shift = beta - mean scale; one thread
// a channel.
extern "C" __global__ void bn_fold(
    const REAL* mean, const REAL* variance, const REAL* gamma, const REAL* beta,
    REAL* inv_std, REAL* scale, REAL* shift, long long c, double eps
) {
    long long i = thread_number();
    if (i >= c) return;
    REAL inverse = (REAL)1 / sqrt(variance[i] + (REAL)eps);
    REAL factor = gamma[i] * inverse;
    inv_std[i] = inverse;
    scale[i] = factor;
    shift[i] = beta[i] - mean[i] * factor;
}

// running = (1 - momentum) running + momentum new, new = mean and unbiased variance, at channels
// with live > 0 (live or 0: at all); one thread a channel.
extern "C" __global__ void bn_track(
    REAL* running_mean, REAL* running_var, const REAL* mean, const REAL* variance, const REAL* live,
    long long c, double momentum, double unbiased
) {
    long long i = thread_number();
    if (i >= c || (live && !(live[i] > 0))) return;
    REAL keep = (REAL)(1 - momentum), take = (REAL)momentum;
    running_mean[i] = keep * running_mean[i] + take * mean[i];
    running_var[i] = keep * running_var[i] + take * (variance[i] * (REAL)unbiased);
}

// out = x scale + shift of the channel, or max(that, 0); out may be x. `step` threads, step a
// multiple of c: thread i takes numbers i, i + step, ..., all of one channel. LANES are read, then
// written.
extern "C" __global__ void scale_shift(
    const REAL* x, const REAL* scale, const REAL* shift, REAL* out,
    long long n, long long c, long long step, long long relu
) {
    long long i = thread_number();
    if (i >= step) return;
    REAL factor = scale[i % c], offset = shift[i % c];
    long long e = i;
    for (; e + (LANES - 1) * step < n; e += LANES * step) {
        REAL values[LANES];
#pragma unroll
        for (long long k = 0; k < LANES; ++k) values[k] = x[e + k * step] * factor + offset;
#pragma unroll
        for (long long k = 0; k < LANES; ++k) {
            out[e + k * step] = relu ? positive_part(values[k]) : values[k];
        }
    }
    for (; e < n; e += step) {
        REAL value = x[e] * factor + offset;
        out[e] = relu ? positive_part(value) : value;
    }
}

// With g = grad_out (out > 0) (out or 0: grad_out): partial[segment, 0, c] = sum g and
// partial[segment, 1, c] = sum g (x - mean). Threads and segments as in bn_sums.
extern "C" __global__ void bn_backward_sums(
    const REAL* grad_out, const REAL* x, const REAL* out, const REAL* mean, double* partial,
    long long rows, long long c, long long segments
) {
    long long i = thread_number();
    if (i >= segments * c) return;
    long long channel = i % c, segment = i / c;
    long long row = segment * rows / segments, stop = (segment + 1) * rows / segments;
    REAL centre = mean[channel];
    double total = 0, total_products = 0;
    while (row < stop) {
        REAL sum = 0, products = 0;
        long long pause = row + ROWS_IN_REAL < stop ? row + ROWS_IN_REAL : stop;
#pragma unroll 8
        for (; row < pause; ++row) {
            long long e = row * c + channel;
            REAL g = out ? grad_out[e] * gate(out[e]) : grad_out[e];
            sum += g;
            products += g * (x[e] - centre);
        }
        total += sum;
        total_products += products;
    }
    partial[2 * segment * c + channel] = total;
    partial[(2 * segment + 1) * c + channel] = total_products;
}

// From the sums of bn_backward_sums, in double: grad_beta = sum g,
// grad_gamma = inv_std sum g (x - mean), and for bn_backward_apply: scale = gamma inv_std,
// slope = -scale inv_std grad_gamma / rows, offset = -scale grad_beta / rows. One thread a channel.
extern "C" __global__ void bn_backward_finish(
    const double* partial, const REAL* inv_std, const REAL* gamma,
    REAL* grad_gamma, REAL* grad_beta, REAL* scale, REAL* slope, REAL* offset,
    long long rows, long long c, long long segments
) {
    long long channel = thread_number();
    if (channel >= c) return;
    double inverse = inv_std[channel];
    double of_beta = sum_of_segments(partial, 0, channel, c, segments);
    double of_gamma = inverse * sum_of_segments(partial, 1, channel, c, segments);
    double factor = gamma[channel] * inverse;
    grad_beta[channel] = (REAL)of_beta;
    grad_gamma[channel] = (REAL)of_gamma;
    scale[channel] = (REAL)factor;
    slope[channel] = (REAL)(-factor * inverse * of_gamma / rows);
    offset[channel] = (REAL)(-factor * of_beta / rows);
}

// grad_x = g scale, in training + offset + (x - mean) slope, g as in bn_backward_sums; threads as
// in scale_shift.
extern "C" __global__ void bn_backward_apply(
    const REAL* __restrict__ grad_out, const REAL* __restrict__ x, const REAL* __restrict__ out,
    const REAL* __restrict__ mean, const REAL* __restrict__ scale, const REAL* __restrict__ slope,
    const REAL* __restrict__ offset, REAL* __restrict__ grad_x,
    long long n, long long c, long long step, long long training
) {
    long long i = thread_number();
    if (i >= step) return;
    REAL centre = mean[i % c], factor = scale[i % c], tilt = slope[i % c], moved = offset[i % c];
#pragma unroll 4
    for (long long e = i; e < n; e += step) {
        REAL g = out ? grad_out[e] * gate(out[e]) : grad_out[e];
        REAL part = g * factor, rest = (x[e] - centre) * tilt;
        grad_x[e] = training ? part + moved + rest : part;
    }
}

// ---- Pooling: square windows of at most 15 x 15; one thread a number that is written -----------

// out = largest number of the window, tap = ky kernel + kx of the first that is it (tap or 0: not
// wanted). As pooling.py: padding never wins; once a number is NaN, out is NaN; a padded window of
// nothing but -inf and NaN has tap 255.
extern "C" __global__ void max_pool(
    const REAL* x, REAL* out, unsigned char* tap, long long total,
    long long h, long long w, long long c, long long oh, long long ow,
    long long kernel, long long stride, long long padding
) {
    long long i = thread_number();
    if (i >= total) return;
    Place at = place_of(i, oh, ow, c);
    REAL zero = 0, best = -1 / zero;  // -inf
    long long winner = padding ? 255 : 0;
    for (long long ky = 0; ky < kernel; ++ky) {
        long long iy = at.y * stride + ky - padding;
        if (iy < 0 || iy >= h) continue;
        for (long long kx = 0; kx < kernel; ++kx) {
            long long ix = at.x * stride + kx - padding;
            if (ix < 0 || ix >= w) continue;
            REAL value = x[((at.image * h + iy) * w + ix) * c + at.channel];
            if (value > best) winner = ky * kernel + kx;
            if (value > best || value != value) best = value;
        }
    }
    out[i] = best;
    if (tap) tap[i] = (unsigned char)winner;
}

// grad_x: every pixel gathers grad_out, taps ascending, from the windows that it won.
extern "C" __global__ void max_pool_backward(
    const REAL* grad_out, const unsigned char* tap, REAL* grad_x, long long total,
    long long h, long long w, long long c, long long oh, long long ow,
    long long kernel, long long stride, long long padding
) {
    long long i = thread_number();
    if (i >= total) return;
    Place at = place_of(i, h, w, c);
    Reach ys = windows_over(at.y, oh, kernel, stride, padding);
    Reach xs = windows_over(at.x, ow, kernel, stride, padding);
    REAL sum = 0;
    for (long long a = 0; a < ys.count; ++a) {
        long long windows = (at.image * oh + ys.last - a) * ow + xs.last;
        long long taps = (ys.first + a * stride) * kernel + xs.first;
        for (long long b = 0; b < xs.count; ++b) {
            long long from = (windows - b) * c + at.channel;
            sum += grad_out[from] * (REAL)(tap[from] == taps + b * stride ? 1 : 0);
        }
    }
    grad_x[i] = sum;
}

// out = sum of the window, taps ascending, times 1 / kernel^2: padded zeros count.
extern "C" __global__ void avg_pool(
    const REAL* x, REAL* out, long long total,
    long long h, long long w, long long c, long long oh, long long ow,
    long long kernel, long long stride, long long padding
) {
    long long i = thread_number();
    if (i >= total) return;
    Place at = place_of(i, oh, ow, c);
    REAL sum = 0;
    for (long long ky = 0; ky < kernel; ++ky) {
        long long iy = at.y * stride + ky - padding;
        if (iy < 0 || iy >= h) continue;
        for (long long kx = 0; kx < kernel; ++kx) {
            long long ix = at.x * stride + kx - padding;
            if (ix < 0 || ix >= w) continue;
            sum += x[((at.image * h + iy) * w + ix) * c + at.channel];
        }
    }
    out[i] = sum * (REAL)(1.0 / (double)(kernel * kernel));
}

// grad_x: every pixel gathers grad_out / kernel^2, taps ascending, from the windows that read it.
extern "C" __global__ void avg_pool_backward(
    const REAL* grad_out, REAL* grad_x, long long total,
    long long h, long long w, long long c, long long oh, long long ow,
    long long kernel, long long stride, long long padding
) {
    long long i = thread_number();
    if (i >= total) return;
    Place at = place_of(i, h, w, c);
    Reach ys = windows_over(at.y, oh, kernel, stride, padding);
    Reach xs = windows_over(at.x, ow, kernel, stride, padding);
    REAL share = (REAL)(1.0 / (double)(kernel * kernel)), sum = 0;
    for (long long a = 0; a < ys.count; ++a) {
        long long windows = (at.image * oh + ys.last - a) * ow + xs.last;
        for (long long b = 0; b < xs.count; ++b) {
            sum += grad_out[(windows - b) * c + at.channel] * share;
        }
    }
    grad_x[i] = sum;
}

// ---- Cut and paste: full (.., taps, full_columns), small (.., taps, n_columns) ------------------

// small[r, t, j] = full[rows[r], t, columns[j]]; rows or 0, columns or 0: all of them. One thread a
// number of small.
extern "C" __global__ void gather_block(
    const REAL* full, const long long* rows, const long long* columns, REAL* small,
    long long total, long long taps, long long n_columns, long long full_columns
) {
    long long i = thread_number();
    if (i >= total) return;
    long long j = i % n_columns, t = i / n_columns % taps, r = i / n_columns / taps;
    long long row = rows ? rows[r] : r, column = columns ? columns[j] : j;
    small[i] = full[(row * taps + t) * full_columns + column];
}

// full[rows[r], t, columns[j]] = small[r, t, j], the way back; the rest of full stays.
extern "C" __global__ void scatter_block(
    REAL* full, const long long* rows, const long long* columns, const REAL* small,
    long long total, long long taps, long long n_columns, long long full_columns
) {
    long long i = thread_number();
    if (i >= total) return;
    long long j = i % n_columns, t = i / n_columns % taps, r = i / n_columns / taps;
    long long row = rows ? rows[r] : r, column = columns ? columns[j] : j;
    full[(row * taps + t) * full_columns + column] = small[i];
}

// ---- Loss -------------------------------------------------------------------------------------

// Of each row, in double: log_p = z - max - log(sum exp(z - max)), target = smoothing / k, and
// 1 - smoothing more at the label; loss = -sum target log_p, residual = exp(log_p) - target. One
// thread a row; logits (n, k).
extern "C" __global__ void cross_entropy(
    const REAL* logits, const long long* labels, double* loss, double* residual,
    long long n, long long k, double smoothing
) {
    long long row = thread_number();
    if (row >= n) return;
    const REAL* z = logits + row * k;
    double largest = z[0];
    for (long long j = 1; j < k; ++j) {
        if (z[j] > largest) largest = z[j];  // a NaN passed over here is in the sum below
    }
    double sum = 0;
    for (long long j = 0; j < k; ++j) sum += exp(z[j] - largest);
    double log_sum = log(sum), total = 0;
    for (long long j = 0; j < k; ++j) {
        double log_p = z[j] - largest - log_sum;
        double target = smoothing / k;
        if (j == labels[row]) target += 1.0 - smoothing;
        total += target * log_p;
        residual[row * k + j] = exp(log_p) - target;
    }
    loss[row] = -total;
}

// ---- Sparse linear layers: x (n, c_in), out (n, c_out); sums in double, one thread a number -----

// out[n, r] = sum of values[e] x[n, columns[e]] over the entries e of row r, pointers[r] up to
// pointers[r + 1], + bias[r] (bias or 0).
extern "C" __global__ void sparse_linear(
    const REAL* x, const REAL* values, const long long* pointers, const long long* columns,
    const REAL* bias, REAL* out, long long n, long long c_in, long long c_out
) {
    long long i = thread_number();
    if (i >= n * c_out) return;
    long long row = i % c_out;
    const REAL* of_image = x + i / c_out * c_in;
    double sum = 0;
    for (long long e = pointers[row]; e < pointers[row + 1]; ++e) {
        sum += (double)values[e] * of_image[columns[e]];
    }
    if (bias) sum += bias[row];
    out[i] = (REAL)sum;
}

// grad_x[n, c] = sum of values[order[e]] grad_out[n, rows[e]] over the entries e of column c,
// pointers[c] up to pointers[c + 1].
extern "C" __global__ void sparse_linear_grad_input(
    const REAL* grad_out, const REAL* values, const long long* pointers, const long long* rows,
    const long long* order, REAL* grad_x, long long n, long long c_in, long long c_out
) {
    long long i = thread_number();
    if (i >= n * c_in) return;
    long long column = i % c_in;
    const REAL* of_image = grad_out + i / c_in * c_out;
    double sum = 0;
    for (long long e = pointers[column]; e < pointers[column + 1]; ++e) {
        sum += (double)values[order[e]] * of_image[rows[e]];
    }
    grad_x[i] = (REAL)sum;
}

// grad[e] = sum_n grad_out[n, rows[e]] x[n, columns[e]], at the live entries.
extern "C" __global__ void sparse_linear_grad_weight(
    const REAL* x, const REAL* grad_out, const long long* rows, const long long* columns,
    REAL* grad, long long n, long long c_in, long long c_out, long long size
) {
    long long i = thread_number();
    if (i >= size) return;
    long long row = rows[i], column = columns[i];
    double sum = 0;
    for (long long image = 0; image < n; ++image) {
        sum += (double)grad_out[image * c_out + row] * x[image * c_in + column];
    }
    grad[i] = (REAL)sum;
}
