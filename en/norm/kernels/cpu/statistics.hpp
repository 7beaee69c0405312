// The small part of a normalizer, (C) or less of a sample, forward and backward, for a CPU: see ../../statistics.py,
// which has the same in torch's operations.
//
// Nothing of (N, K, C) is kept. The statistics that are mixed are m and s of each cell for `instance`, (C) for `batch`
// and `given`, (N, G) for `grouped`; a sample's offsets m - mu_k and 1 / sqrt(var_k + eps) are made of them where they
// are needed, a row of channels at a time. Sums over samples and channels are taken in a fixed order, whatever the
// number of threads: one over samples within a slice of channels, one over channels within a sample, in chunks.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

enum kind : int64_t { instance, given, batch, grouped };

struct sizes {
    int64_t samples, kinds, channels, threads;
    int64_t kind[4], groups[4];
    bool has(int64_t wanted) const { return std::find(kind, kind + kinds, wanted) != kind + kinds; }
};

constexpr int64_t kChunk = 256;  // channels that are summed up before they are added to the total

template <class Task> void over(int64_t tasks, int64_t work, int64_t threads, Task task) {
    const int64_t useful = std::min(threads, work / 8192 + 1);
#pragma omp parallel for num_threads(useful) schedule(static) if (useful > 1)
    for (int64_t i = 0; i < tasks; ++i) task(i);
}

// use(from, to) for every chunk of channels.
template <class Use> void each_chunk(int64_t channels, Use use) {
    for (int64_t from = 0; from < channels; from += kChunk) use(from, std::min(channels, from + kChunk));
}

// The functions below copy into locals what their innermost loops read of a closure: compilers vectorize those then.
template <class A> A rstd(A var, A eps) { return A(1) / std::sqrt(var + eps); }

// values[c - from] of channels from .. to, from one value for each of the groups of `size` channels.
template <class A> void spread(const A* of_groups, int64_t size, int64_t from, int64_t to, A* values) {
    for (int64_t start = from; start < to;) {
        const int64_t group = start / size, stop = std::min(to, (group + 1) * size);
        std::fill(values + start - from, values + stop - from, of_groups[group]);
        start = stop;
    }
}

// ---- statistics: mu_k and var_k, from the moments m, s of each cell ----

template <class A> struct statistics {
    sizes s;
    A eps;
    const A *mean, *var;                // (N, C): m and s
    A *mu, *pooled, *batch_rstd;        // (C): of `batch` or `given`
    A *group_mean[4], *group_var[4];    // (N, G): of `grouped`, by kind

    // mu = mean of m and var = mean of s + (m - mu)^2 over samples, of channels from .. to.
    void pool_batch(int64_t from, int64_t to) const {
        const int64_t C = s.channels, N = s.samples;
        const A *const m = mean, *const v = var;
        A *const sum = mu, *const squares = pooled;
        std::fill(sum + from, sum + to, A(0));
        std::fill(squares + from, squares + to, A(0));
        for (int64_t n = 0; n < N; ++n)
#pragma omp simd
            for (int64_t c = from; c < to; ++c) sum[c] += m[n * C + c];
#pragma omp simd
        for (int64_t c = from; c < to; ++c) sum[c] /= A(N);
        for (int64_t n = 0; n < N; ++n)
#pragma omp simd
            for (int64_t c = from; c < to; ++c) {
                const A d = m[n * C + c] - sum[c];
                squares[c] += v[n * C + c] + d * d;
            }
#pragma omp simd
        for (int64_t c = from; c < to; ++c) squares[c] /= A(N);
    }

    // 1 / sqrt(var + eps) of the batch, once for all samples.
    void root_batch() const {
        const A *const squares = pooled, epsilon = eps;
        A* const root = batch_rstd;
#pragma omp simd
        for (int64_t c = 0; c < s.channels; ++c) root[c] = rstd(squares[c], epsilon);
    }

    // mu = mean of m and var = mean of s + (m - mu)^2 over the channels of each group of a sample.
    void pool_groups(int64_t n) const {
        const A *const m = mean + n * s.channels, *const v = var + n * s.channels;
        for (int64_t k = 0; k < s.kinds; ++k) {
            if (s.kind[k] != grouped) continue;
            const int64_t size = s.channels / s.groups[k];
            for (int64_t g = 0; g < s.groups[k]; ++g) {
                A sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
                for (int64_t c = g * size; c < (g + 1) * size; ++c) sum += m[c];
                const A centre = sum / A(size);
#pragma omp simd reduction(+ : squares)
                for (int64_t c = g * size; c < (g + 1) * size; ++c) {
                    const A d = m[c] - centre;
                    squares += v[c] + d * d;
                }
                group_mean[k][n * s.groups[k] + g] = centre;
                group_var[k][n * s.groups[k] + g] = squares / A(size);
            }
        }
    }

    // offset[c - from] = m - mu_k of a sample's channels from .. to.
    void offsets(int64_t k, int64_t n, int64_t from, int64_t to, A* offset) const {
        const A* const m = mean + n * s.channels + from;
        const int64_t count = to - from;
        if (s.kind[k] == instance) {
            std::fill(offset, offset + count, A(0));
        } else if (s.kind[k] == grouped) {
            spread(group_mean[k] + n * s.groups[k], s.channels / s.groups[k], from, to, offset);
#pragma omp simd
            for (int64_t c = 0; c < count; ++c) offset[c] = m[c] - offset[c];
        } else {
            const A* const centre = mu + from;
#pragma omp simd
            for (int64_t c = 0; c < count; ++c) offset[c] = m[c] - centre[c];
        }
    }

    // values[c - from] = var_k of a sample's channels from .. to.
    void variances(int64_t k, int64_t n, int64_t from, int64_t to, A* values) const {
        if (s.kind[k] == grouped) {
            spread(group_var[k] + n * s.groups[k], s.channels / s.groups[k], from, to, values);
        } else {
            const A* const source = s.kind[k] == instance ? var + n * s.channels : pooled;
            std::copy(source + from, source + to, values);
        }
    }

    // root[c - from] = 1 / sqrt(var_k + eps) of a sample's channels from .. to.
    void roots(int64_t k, int64_t n, int64_t from, int64_t to, A* root) const {
        const int64_t count = to - from;
        const A epsilon = eps;
        if (s.kind[k] == grouped) {
            const int64_t size = s.channels / s.groups[k];
            const A* const squares = group_var[k] + n * s.groups[k];
            for (int64_t start = from; start < to;) {
                const int64_t g = start / size, stop = std::min(to, (g + 1) * size);
                std::fill(root + start - from, root + stop - from, rstd(squares[g], epsilon));
                start = stop;
            }
        } else if (s.kind[k] == instance) {
            const A* const v = var + n * s.channels + from;
#pragma omp simd
            for (int64_t c = 0; c < count; ++c) root[c] = rstd(v[c], epsilon);
        } else {
            std::copy(batch_rstd + from, batch_rstd + to, root);
        }
    }
};

// Adds to d_m and d_v, (C) of a sample, what d_offset and d_var, the gradients of kind k's offsets and variances, give
// to its cells' moments m and s: for ln and gn that includes the way through mu_k and var_k; for bn the sums over
// samples are not in it, see batch_sums.
template <class A> void add_moment_gradients(
    const sizes& s, int64_t k, const A* offset, const A* d_offset, const A* d_var, A* d_m, A* d_v) {
    const int64_t C = s.channels;
    if (s.kind[k] == instance) {
        // d_s = d_var
#pragma omp simd
        for (int64_t c = 0; c < C; ++c) d_v[c] += d_var[c];
    } else if (s.kind[k] != grouped) {
        // d_m = d_offset
#pragma omp simd
        for (int64_t c = 0; c < C; ++c) d_m[c] += d_offset[c];
    } else {
        // d_m = d_offset - mean d_offset + 2 * mean d_var * offset, d_s = mean d_var, means over the group
        const int64_t size = C / s.groups[k];
        for (int64_t from = 0; from < C; from += size) {
            A sum = 0, vars = 0;
#pragma omp simd reduction(+ : sum, vars)
            for (int64_t c = from; c < from + size; ++c) {
                sum += d_offset[c];
                vars += d_var[c];
            }
            sum /= A(size);
            vars /= A(size);
#pragma omp simd
            for (int64_t c = from; c < from + size; ++c) {
                d_m[c] += d_offset[c] - sum + 2 * vars * offset[c];
                d_v[c] += vars;
            }
        }
    }
}

// The way through the batch's mu and var, (C): d_m += (d_mu + 2 * d_var * offset) / N, d_s += d_var / N.
template <class A> void add_batch_gradients(
    int64_t channels, int64_t samples, const A* offset, const A* d_mu, const A* d_var, A* d_m, A* d_v) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
        d_m[c] += (d_mu[c] + 2 * d_var[c] * offset[c]) / A(samples);
        d_v[c] += d_var[c] / A(samples);
    }
}

// ---- correlations: z = grouped sums of kernel * xhat, xhat = offset * rstd; v = z z^T ----

// z (G) of one sample and kind, from its offsets and roots (C).
template <class A>
void grouped_sums(int64_t channels, int64_t groups, const A* kernel, const A* offset, const A* root, A* z) {
    const int64_t size = channels / groups;
    for (int64_t g = 0; g < groups; ++g) {
        A sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = g * size; c < (g + 1) * size; ++c) sum += kernel[c] * offset[c] * root[c];
        z[g] = sum;
    }
}

// v (K, K) of one sample's z (K, G).
template <class A> void correlate(int64_t kinds, int64_t groups, const A* z, A* v) {
    for (int64_t i = 0; i < kinds; ++i)
        for (int64_t j = 0; j < kinds; ++j) {
            A sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t g = 0; g < groups; ++g) sum += z[i * groups + g] * z[j * groups + g];
            v[i * kinds + j] = sum;
        }
}

// d_z = (d_v + d_v^T) z of one sample.
template <class A> void correlate_backward(int64_t kinds, int64_t groups, const A* z, const A* d_v, A* d_z) {
    std::fill(d_z, d_z + kinds * groups, A(0));
    for (int64_t i = 0; i < kinds; ++i)
        for (int64_t j = 0; j < kinds; ++j) {
            const A both = d_v[i * kinds + j] + d_v[j * kinds + i];
            for (int64_t g = 0; g < groups; ++g) d_z[i * groups + g] += both * z[j * groups + g];
        }
}

// d_kernel += d_z * xhat, of `count` channels whose d_z, offsets and roots these are.
template <class A> void add_kernel_gradients(int64_t count, const A* d_z, const A* offset, const A* root, A* d_kernel) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) d_kernel[c] += d_z[c] * offset[c] * root[c];
}

// d_offset += d_z * kernel * rstd, d_var -= d_z * kernel * offset * rstd^3 / 2.
template <class A> void add_xhat_gradients(
    int64_t count, const A* d_z, const A* kernel, const A* offset, const A* root, A* d_offset, A* d_var) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) {
        const A r = root[c], dx = d_z[c] * kernel[c];
        d_offset[c] += dx * r;
        d_var[c] -= A(0.5) * dx * offset[c] * r * r * r;
    }
}

// ---- EN: scale = sum_k q_k, shift = sum_k q_k offset_k + bias, with q_k = weight_k ratio_k rstd_k ----

// Adds kind k's part to scale and shift, (C) of a sample.
template <class A> void add_output(
    int64_t count, A ratio, const A* weight, const A* offset, const A* root, A* scale, A* shift) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) {
        const A q = weight[c] * ratio * root[c];
        scale[c] += q;
        shift[c] += q * offset[c];
    }
}

// The same for the scale alone.
template <class A> void add_scale(int64_t count, A ratio, const A* weight, const A* root, A* scale) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) scale[c] += weight[c] * ratio * root[c];
}

// d_ratio_k = sum over channels of (d_scale + d_shift * offset_k) * rstd_k * weight_k.
template <class A>
A ratio_gradient(int64_t channels, const A* d_scale, const A* d_shift, const A* weight, const A* offset, const A* root) {
    A all = 0;
    each_chunk(channels, [&](int64_t from, int64_t to) {
        const A *const da = d_scale, *const db = d_shift, *const gamma = weight, *const o = offset, *const r = root;
        A sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = from; c < to; ++c) sum += (da[c] + db[c] * o[c]) * r[c] * gamma[c];
        all += sum;
    });
    return all;
}

// d_weight_k += (d_scale + d_shift * offset_k) * rstd_k * ratio_k
template <class A> void add_weight_gradients(int64_t count, A ratio, const A* d_scale, const A* d_shift,
    const A* offset, const A* root, A* d_weight) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) d_weight[c] += (d_scale[c] + d_shift[c] * offset[c]) * root[c] * ratio;
}

// d_offset_k = d_shift q_k, d_var_k = -(d_scale + d_shift offset_k) q_k rstd_k^2 / 2
template <class A> void output_gradients(int64_t count, A ratio, const A* d_scale, const A* d_shift, const A* weight,
    const A* offset, const A* root, A* d_offset, A* d_var) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) {
        const A r = root[c], d = (d_scale[c] + d_shift[c] * offset[c]) * r, q = weight[c] * ratio;
        d_offset[c] = d_shift[c] * q * r;
        d_var[c] = A(-0.5) * d * q * r * r;
    }
}

// ---- SN: scale = weight / sqrt(sum_k b_k var_k + eps), shift = bias + scale * sum_k a_k offset_k; a, b per sample
// ----

// Adds kind k's part to the mixed offset and variance of `count` channels.
template <class A> void add_statistics(
    int64_t count, A mean_ratio, A var_ratio, const A* offset, const A* var, A* mixed_offset, A* mixed_var) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) {
        mixed_var[c] += var_ratio * var[c];
        mixed_offset[c] += mean_ratio * offset[c];
    }
}

// scale and shift of mixed statistics.
template <class A> void mixed_coefficients(int64_t count, A eps, const A* weight, const A* bias, const A* mixed_offset,
    const A* mixed_var, A* scale, A* shift) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) {
        scale[c] = weight[c] * rstd(mixed_var[c], eps);
        shift[c] = bias[c] + scale[c] * mixed_offset[c];
    }
}

// d_weight += (d_scale + d_shift * mixed_offset) * rstd
template <class A> void add_mixed_weight_gradients(int64_t count, A eps, const A* d_scale, const A* d_shift,
    const A* mixed_offset, const A* mixed_var, A* d_weight) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c)
        d_weight[c] += (d_scale[c] + d_shift[c] * mixed_offset[c]) * rstd(mixed_var[c], eps);
}

// In place: the gradients of the mixed offset, d_shift * weight * rstd, and of the mixed variance,
// -(d_scale + d_shift * mixed_offset) * weight * rstd^3 / 2.
template <class A> void mixed_gradients(
    int64_t count, A eps, const A* d_scale, const A* d_shift, const A* weight, A* mixed_offset, A* mixed_var) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) {
        const A r = rstd(mixed_var[c], eps), d = d_scale[c] + d_shift[c] * mixed_offset[c];
        mixed_var[c] = A(-0.5) * d * weight[c] * r * r * r;
        mixed_offset[c] = d_shift[c] * weight[c] * r;
    }
}

// sum over channels of a * b.
template <class A> A dot(int64_t channels, const A* a, const A* b) {
    A all = 0;
    each_chunk(channels, [&](int64_t from, int64_t to) {
        const A *const left = a, *const right = b;
        A sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = from; c < to; ++c) sum += left[c] * right[c];
        all += sum;
    });
    return all;
}

// to += values.
template <class A> void add(int64_t count, const A* values, A* to) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) to[c] += values[c];
}

// out = factor * values.
template <class A> void scaled(int64_t count, A factor, const A* values, A* out) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) out[c] = factor * values[c];
}

}  // namespace
