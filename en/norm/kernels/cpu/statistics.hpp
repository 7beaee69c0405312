// The small part of a normalizer, (N, K, C) or less, forward and backward, for a CPU: see ../../statistics.py, which
// has the same in torch's operations. Sums over samples and channels are taken in a fixed order, whatever the number of
// threads.

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
};

constexpr int64_t kChunk = 256;  // channels a task works on

template <class Task> void over(int64_t tasks, int64_t work, int64_t threads, Task task) {
    const int64_t useful = std::min(threads, work / 8192 + 1);
#pragma omp parallel for num_threads(useful) schedule(static) if (useful > 1)
    for (int64_t i = 0; i < tasks; ++i) task(i);
}

// task(from, to) for every chunk of channels; work in all samples and kinds of a chunk.
template <class Task> void over_channels(const sizes& s, Task task) {
    const int64_t chunks = (s.channels + kChunk - 1) / kChunk;
    over(chunks, s.samples * s.kinds * s.channels, s.threads,
        [&](int64_t i) { task(i, i * kChunk, std::min(s.channels, (i + 1) * kChunk)); });
}

// The functions below copy into locals what their innermost loops read of a closure: compilers vectorize those then.
template <class A> A rstd(A var, A eps) { return A(1) / std::sqrt(var + eps); }

// ---- statistics: offset[n, k, c] = m - mu_k and var_k, from the moments m, s of each cell ----

template <class A> void statistics(const sizes& s, const A* m, const A* v, A* batch_moments, A* offset, A* var) {
    const int64_t C = s.channels, N = s.samples, K = s.kinds;
    A *mu = batch_moments, *pooled = batch_moments + C;
    for (int64_t k = 0; k < K; ++k) {
        if (s.kind[k] != batch) continue;
        over_channels(s, [&](int64_t, int64_t from, int64_t to) {
            std::fill(mu + from, mu + to, A(0));
            std::fill(pooled + from, pooled + to, A(0));
            for (int64_t n = 0; n < N; ++n)
#pragma omp simd
                for (int64_t c = from; c < to; ++c) mu[c] += m[n * C + c];
#pragma omp simd
            for (int64_t c = from; c < to; ++c) mu[c] /= A(N);
            for (int64_t n = 0; n < N; ++n)
#pragma omp simd
                for (int64_t c = from; c < to; ++c) {
                    const A d = m[n * C + c] - mu[c];
                    pooled[c] += v[n * C + c] + d * d;
                }
#pragma omp simd
            for (int64_t c = from; c < to; ++c) pooled[c] /= A(N);
        });
    }
    over(N, N * K * C, s.threads, [&](int64_t n) {
        const A *mn = m + n * C, *vn = v + n * C;
        for (int64_t k = 0; k < K; ++k) {
            A *o = offset + (n * K + k) * C, *w = var + (n * K + k) * C;
            if (s.kind[k] == instance) {
                std::fill(o, o + C, A(0));
                std::copy(vn, vn + C, w);
            } else if (s.kind[k] != grouped) {
#pragma omp simd
                for (int64_t c = 0; c < C; ++c) o[c] = mn[c] - mu[c];
                std::copy(pooled, pooled + C, w);
            } else {
                const int64_t size = C / s.groups[k];
                for (int64_t from = 0; from < C; from += size) {
                    A sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
                    for (int64_t c = from; c < from + size; ++c) sum += mn[c];
                    const A mean = sum / A(size);
#pragma omp simd reduction(+ : squares)
                    for (int64_t c = from; c < from + size; ++c) {
                        const A d = mn[c] - mean;
                        o[c] = d;
                        squares += vn[c] + d * d;
                    }
                    std::fill(w + from, w + from + size, squares / A(size));
                }
            }
        }
    });
}

template <class A> void statistics_backward(
    const sizes& s, const A* offset, const A* d_offset, const A* d_var, A* d_m, A* d_v, A* d_batch) {
    const int64_t C = s.channels, N = s.samples, K = s.kinds;
    std::fill(d_batch, d_batch + 2 * C, A(0));
    over(N, N * K * C, s.threads, [&](int64_t n) {
        A *dm = d_m + n * C, *dv = d_v + n * C;
        std::fill(dm, dm + C, A(0));
        std::fill(dv, dv + C, A(0));
        for (int64_t k = 0; k < K; ++k) {
            const int64_t at = (n * K + k) * C;
            const A *o = offset + at, *od = d_offset + at, *vd = d_var + at;
            if (s.kind[k] == instance) {
#pragma omp simd
                for (int64_t c = 0; c < C; ++c) dv[c] += vd[c];
            } else if (s.kind[k] != grouped) {
#pragma omp simd
                for (int64_t c = 0; c < C; ++c) dm[c] += od[c];
            } else {
                const int64_t size = C / s.groups[k];
                for (int64_t from = 0; from < C; from += size) {
                    A sum = 0, vars = 0;
#pragma omp simd reduction(+ : sum, vars)
                    for (int64_t c = from; c < from + size; ++c) {
                        sum += od[c];
                        vars += vd[c];
                    }
                    sum /= A(size);
                    vars /= A(size);
#pragma omp simd
                    for (int64_t c = from; c < from + size; ++c) {
                        dm[c] += od[c] - sum + 2 * vars * o[c];
                        dv[c] += vars;
                    }
                }
            }
        }
    });
    for (int64_t k = 0; k < K; ++k) {
        if (s.kind[k] != given && s.kind[k] != batch) continue;
        A *sum = d_batch, *vars = d_batch + C;  // of mu_k and var_k
        over_channels(s, [&](int64_t, int64_t from, int64_t to) {
            for (int64_t n = 0; n < N; ++n)
#pragma omp simd
                for (int64_t c = from; c < to; ++c) {
                    sum[c] -= d_offset[(n * K + k) * C + c];
                    vars[c] += d_var[(n * K + k) * C + c];
                }
            if (s.kind[k] == given) return;
            for (int64_t n = 0; n < N; ++n)
#pragma omp simd
                for (int64_t c = from; c < to; ++c) {
                    d_m[n * C + c] += (sum[c] + 2 * vars[c] * offset[(n * K + k) * C + c]) / A(N);
                    d_v[n * C + c] += vars[c] / A(N);
                }
        });
    }
}

// ---- correlations: z = grouped sums of kernel * xhat, xhat = offset * rstd; v = z z^T; backward adds to d_offset,
// d_var ----

template <class A> void correlations(
    const sizes& s, int64_t groups, A eps, const A* offset, const A* var, const A* kernel, A* z, A* v) {
    const int64_t C = s.channels, K = s.kinds, size = C / groups;
    over(s.samples, s.samples * K * C, s.threads, [&](int64_t n) {
        A* zn = z + n * K * groups;
        const A *const factors = kernel, epsilon = eps;
        for (int64_t k = 0; k < K; ++k) {
            const A *o = offset + (n * K + k) * C, *w = var + (n * K + k) * C;
            for (int64_t g = 0; g < groups; ++g) {
                A sum = 0;
#pragma omp simd reduction(+ : sum)
                for (int64_t c = g * size; c < (g + 1) * size; ++c) sum += factors[c] * o[c] * rstd(w[c], epsilon);
                zn[k * groups + g] = sum;
            }
        }
        for (int64_t i = 0; i < K; ++i)
            for (int64_t j = 0; j < K; ++j) {
                A sum = 0;
#pragma omp simd reduction(+ : sum)
                for (int64_t g = 0; g < groups; ++g) sum += zn[i * groups + g] * zn[j * groups + g];
                v[(n * K + i) * K + j] = sum;
            }
    });
}

template <class A> void correlations_backward(const sizes& s, int64_t groups, A eps, const A* offset, const A* var,
    const A* kernel, const A* z, const A* d_v, A* d_offset, A* d_var, A* d_kernel) {
    const int64_t C = s.channels, K = s.kinds, N = s.samples, size = C / groups;
    std::vector<A> dz(N * K * groups, A(0));
    for (int64_t n = 0; n < N; ++n)
        for (int64_t i = 0; i < K; ++i)
            for (int64_t j = 0; j < K; ++j) {
                const A both = d_v[(n * K + i) * K + j] + d_v[(n * K + j) * K + i];
                for (int64_t g = 0; g < groups; ++g) dz[(n * K + i) * groups + g] += both * z[(n * K + j) * groups + g];
            }
    std::fill(d_kernel, d_kernel + C, A(0));
    over_channels(s, [&](int64_t, int64_t from, int64_t to) {
        for (int64_t cell = 0; cell < N * K; ++cell) {
            const A *o = offset + cell * C, *w = var + cell * C;
            A *od = d_offset + cell * C, *vd = d_var + cell * C;
            for (int64_t start = from; start < to;) {
                const int64_t g = start / size, stop = std::min(to, (g + 1) * size);
                const A d = dz[cell * groups + g];
#pragma omp simd
                for (int64_t c = start; c < stop; ++c) {
                    const A r = rstd(w[c], eps), dx = d * kernel[c];
                    d_kernel[c] += d * o[c] * r;
                    od[c] += dx * r;
                    vd[c] -= A(0.5) * dx * o[c] * r * r * r;
                }
                start = stop;
            }
        }
    });
}

// ---- EN: scale = sum_k q_k, shift = sum_k q_k offset_k + bias, with q_k = weight_k ratio_k rstd_k ----

template <class A> void mix_outputs(const sizes& s, int64_t rows, A eps, const A* ratios, const A* offset, const A* var,
    const A* weight, const A* bias, A* scale, A* shift) {
    const int64_t C = s.channels, K = s.kinds;
    over(s.samples, s.samples * K * C, s.threads, [&](int64_t n) {
        A *a = scale + n * C, *b = shift + n * C;
        std::fill(a, a + C, A(0));
        std::copy(bias, bias + C, b);
        for (int64_t row = 1; row < rows; ++row)
#pragma omp simd
            for (int64_t c = 0; c < C; ++c) b[c] += bias[row * C + c];
        for (int64_t k = 0; k < K; ++k) {
            const A *o = offset + (n * K + k) * C, *w = var + (n * K + k) * C, *gamma = weight + (rows > 1 ? k * C : 0);
            const A ratio = ratios[n * K + k];
#pragma omp simd
            for (int64_t c = 0; c < C; ++c) {
                const A q = gamma[c] * ratio * rstd(w[c], eps);
                a[c] += q;
                b[c] += q * o[c];
            }
        }
    });
}

// Sums over channels per (n, k), collected chunk by chunk and added up in order.
template <class A> struct chunked_sums {
    int64_t cells, chunks;
    std::vector<A> parts;
    chunked_sums(const sizes& s)
        : cells(s.samples * s.kinds), chunks((s.channels + kChunk - 1) / kChunk), parts(cells * chunks, A(0)) {}
    A& at(int64_t chunk, int64_t cell) { return parts[chunk * cells + cell]; }
    void total(A* out) {
        std::fill(out, out + cells, A(0));
        for (int64_t i = 0; i < chunks; ++i)
            for (int64_t cell = 0; cell < cells; ++cell) out[cell] += at(i, cell);
    }
};

template <class A> void mix_outputs_backward(const sizes& s, int64_t rows, A eps, const A* ratios, const A* offset,
    const A* var, const A* weight, const A* d_scale, const A* d_shift, A* d_ratios, A* d_offset, A* d_var, A* d_weight,
    A* d_bias) {
    const int64_t C = s.channels, K = s.kinds;
    chunked_sums<A> ratio_sums(s);
    std::fill(d_weight, d_weight + rows * C, A(0));
    std::fill(d_bias, d_bias + rows * C, A(0));
    over_channels(s, [&](int64_t chunk, int64_t from, int64_t to) {
        const A epsilon = eps;
        for (int64_t n = 0; n < s.samples; ++n) {
            const A *da = d_scale + n * C, *db = d_shift + n * C;
#pragma omp simd
            for (int64_t c = from; c < to; ++c) d_bias[c] += db[c];
            for (int64_t k = 0; k < K; ++k) {
                const int64_t cell = n * K + k;
                const A *o = offset + cell * C, *w = var + cell * C, *gamma = weight + (rows > 1 ? k * C : 0);
                A *od = d_offset + cell * C, *vd = d_var + cell * C, *gd = d_weight + (rows > 1 ? k * C : 0);
                const A ratio = ratios[cell];
                A sum = 0;
#pragma omp simd reduction(+ : sum)
                for (int64_t c = from; c < to; ++c) {
                    const A r = rstd(w[c], epsilon), d = (da[c] + db[c] * o[c]) * r, q = gamma[c] * ratio;
                    gd[c] += d * ratio;
                    sum += d * gamma[c];
                    od[c] = db[c] * q * r;
                    vd[c] = A(-0.5) * d * q * r * r;
                }
                ratio_sums.at(chunk, cell) = sum;
            }
        }
        for (int64_t row = 1; row < rows; ++row) std::copy(d_bias + from, d_bias + to, d_bias + row * C + from);
    });
    ratio_sums.total(d_ratios);
}

// ---- SN: scale = weight / sqrt(sum_k b_k var_k + eps), shift = bias + scale * sum_k a_k offset_k; a, b per sample
// ----

template <class A> void mix_statistics(const sizes& s, A eps, const A* mean_ratios, const A* var_ratios,
    const A* offset, const A* var, const A* weight, const A* bias, A* scale, A* shift, A* mixed_offset) {
    const int64_t C = s.channels, K = s.kinds;
    over(s.samples, s.samples * K * C, s.threads, [&](int64_t n) {
        A *a = scale + n * C, *b = shift + n * C, *mixed = mixed_offset + n * C;
        std::fill(a, a + C, A(0));
        std::fill(mixed, mixed + C, A(0));
        for (int64_t k = 0; k < K; ++k) {
            const A *o = offset + (n * K + k) * C, *w = var + (n * K + k) * C;
            const A mean_ratio = mean_ratios[n * K + k], var_ratio = var_ratios[n * K + k];
#pragma omp simd
            for (int64_t c = 0; c < C; ++c) {
                a[c] += var_ratio * w[c];
                mixed[c] += mean_ratio * o[c];
            }
        }
#pragma omp simd
        for (int64_t c = 0; c < C; ++c) {
            a[c] = weight[c] * rstd(a[c], eps);
            b[c] = bias[c] + a[c] * mixed[c];
        }
    });
}

template <class A> void mix_statistics_backward(const sizes& s, A eps, const A* mean_ratios, const A* var_ratios,
    const A* offset, const A* var, const A* weight, const A* mixed_offset, const A* d_scale, const A* d_shift,
    A* d_mean_ratios, A* d_var_ratios, A* d_offset, A* d_var, A* d_weight, A* d_bias) {
    const int64_t C = s.channels, K = s.kinds;
    chunked_sums<A> mean_sums(s), var_sums(s);
    std::fill(d_weight, d_weight + C, A(0));
    std::fill(d_bias, d_bias + C, A(0));
    over_channels(s, [&](int64_t chunk, int64_t from, int64_t to) {
        A d_mixed_var[kChunk], d_mixed[kChunk];
        for (int64_t n = 0; n < s.samples; ++n) {
            const A *da = d_scale + n * C, *db = d_shift + n * C, *mixed = mixed_offset + n * C;
            std::fill(d_mixed_var, d_mixed_var + kChunk, A(0));
            for (int64_t k = 0; k < K; ++k)
#pragma omp simd
                for (int64_t c = from; c < to; ++c)
                    d_mixed_var[c - from] += var_ratios[n * K + k] * var[(n * K + k) * C + c];
#pragma omp simd
            for (int64_t c = from; c < to; ++c) {
                const A r = rstd(d_mixed_var[c - from], eps), d = da[c] + db[c] * mixed[c];
                d_weight[c] += d * r;
                d_bias[c] += db[c];
                d_mixed_var[c - from] = A(-0.5) * d * weight[c] * r * r * r;
                d_mixed[c - from] = db[c] * weight[c] * r;
            }
            for (int64_t k = 0; k < K; ++k) {
                const int64_t cell = n * K + k;
                const A *o = offset + cell * C, *w = var + cell * C, mean_ratio = mean_ratios[cell],
                        var_ratio = var_ratios[cell];
                A *od = d_offset + cell * C, *vd = d_var + cell * C;
                A means = 0, vars = 0;
#pragma omp simd reduction(+ : means, vars)
                for (int64_t c = from; c < to; ++c) {
                    means += d_mixed[c - from] * o[c];
                    vars += d_mixed_var[c - from] * w[c];
                    od[c] = mean_ratio * d_mixed[c - from];
                    vd[c] = var_ratio * d_mixed_var[c - from];
                }
                mean_sums.at(chunk, cell) = means;
                var_sums.at(chunk, cell) = vars;
            }
        }
    });
    mean_sums.total(d_mean_ratios);
    var_sums.total(d_var_ratios);
}

}  // namespace
