// What en/norm calls on a CPU, as torch's operators: the four passes by themselves, a layer (IN, LN, GN, SN, EN) whole,
// forward and backward, and of SN and EN what lies between the passes, for graphs of torch.compile.
//
// One call each way for a whole layer, because on small inputs the time goes into calls: some hundred operations of
// torch on (N, K, C) take longer than the four passes over (N, C, H, W). The operators use torch's stable ABI, which
// does not change from one version of torch to the next; ../cpu.py compiles and loads them.

#include <omp.h>

#include <array>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "passes.hpp"
#include "statistics.hpp"
#include "gate.hpp"

namespace {

// SN's ratios are logits, two sets of them.
enum source : int64_t { from_correlations, from_logits };

struct plan {
    int64_t samples, channels, pixels, threads;
    bool channels_last;
    int64_t kinds, kind[4], groups[4];            // the statistics that are mixed
    int64_t absent;                               // of them, the one whose ratio is 0, or -1
    int64_t source, reduced, hidden, activation;  // where the ratios come from
    bool statistics;                              // mix statistics, not outputs
    int64_t affine_rows;                          // of weight
    double eps, gate_scale;

    // parameters, and where their gradients go: null where there are none
    void *weight, *bias, *kernel, *w1, *b1, *w2, *b2, *logits, *var_logits;
    void *d_weight, *d_bias, *d_kernel, *d_w1, *d_b1, *d_w2, *d_b2, *d_logits, *d_var_logits;
    void *running_mean, *running_var;
    int64_t* batches;
    double momentum;        // share of a batch in the running averages; below 0: all batches alike
    void *x, *y, *dy, *dx;  // (N, C, H, W)
    void* saved;            // what forward leaves for backward, or scratch where there will be none

    shape cells() const { return {samples, channels, pixels, threads, channels_last}; }
    sizes small() const {
        sizes s{samples, kinds, channels, threads, {}, {}};
        std::copy(kind, kind + 4, s.kind);
        std::copy(groups, groups + 4, s.groups);
        return s;
    }
    int64_t gate_inputs() const { return kinds * kinds; }
    bool from_gate() const { return source == from_correlations; }
    // The statistics of cells of so few pixels are as many values as the cells: they are computed again.
    bool keeps_cells() const { return pixels > 8; }
};

// Hands out parts of a piece of memory, one after the other; at null, it counts.
template <class A> struct parts_of {
    A* at;
    A* take(int64_t count) {
        A* const here = at;
        at += count;
        return here;
    }
};

// What forward leaves for backward: variances, centres and the rest of the means of cells, statistics of the batch and
// of groups, ratios, and what their gate got.
template <class A> struct saved_parts {
    A *ratios, *var_ratios, *var, *centre, *rest, *batch, *group_mean[4], *group_var[4], *z, *v, *end;
    saved_parts(const plan& m, A* memory) {
        parts_of<A> rest_of{memory};
        const int64_t ratio = m.samples * m.kinds, cells = m.keeps_cells() ? m.samples * m.channels : 0;
        ratios = rest_of.take(ratio);
        var_ratios = rest_of.take(m.var_logits ? ratio : 0);
        var = rest_of.take(cells);
        centre = rest_of.take(cells);
        rest = rest_of.take(cells);
        batch = rest_of.take(2 * m.channels);
        for (int64_t k = 0; k < m.kinds; ++k) {
            const int64_t count = m.kind[k] == grouped ? m.samples * m.groups[k] : 0;
            group_mean[k] = rest_of.take(count);
            group_var[k] = rest_of.take(count);
        }
        z = rest_of.take(m.from_gate() ? ratio * m.reduced : 0);
        v = rest_of.take(m.from_gate() ? ratio * m.kinds : 0);
        end = rest_of.at;
    }
};

template <class A> gate<A> gate_of(const plan& m) {
    return {m.gate_inputs(), m.from_gate() ? m.hidden : 0, m.kinds, m.activation, m.absent, A(m.gate_scale), (A*)m.w1,
        (A*)m.b1, (A*)m.w2, (A*)m.b2};
}

template <class A> void same_for_all(const plan& m, const A* logits, A* ratios) {
    std::vector<A> row(logits, logits + m.kinds);
    softmax(m.kinds, row.data(), m.absent);
    for (int64_t n = 0; n < m.samples; ++n) std::copy(row.begin(), row.end(), ratios + n * m.kinds);
}

template <class A> void same_for_all_backward(const plan& m, const A* ratios, const A* d_ratios, A* d_logits) {
    std::fill(d_logits, d_logits + m.kinds, A(0));
    for (int64_t n = 0; n < m.samples; ++n)
        for (int64_t k = 0; k < m.kinds; ++k) d_logits[k] += d_ratios[n * m.kinds + k];
    softmax_backward(m.kinds, ratios, d_logits);
}

// As nn.BatchNorm2d: the running variance is the unbiased one.
template <class A> void update_running(const plan& m, const A* batch) {
    if (!m.running_mean) return;
    ++*m.batches;
    const double taken = m.momentum < 0 ? 1 / double(*m.batches) : m.momentum;
    A *const mean = (A*)m.running_mean, *const var = (A*)m.running_var;
    const A share = A(taken), count = A(m.samples * m.pixels), unbiased = count / std::max(count - 1, A(1));
    for (int64_t c = 0; c < m.channels; ++c) {
        mean[c] += share * (batch[c] - mean[c]);
        var[c] += share * (batch[m.channels + c] * unbiased - var[c]);
    }
}

// Rows of channels that a thread works in.
template <class A> struct rows {
    A *offset, *root, *var, *d_z, *d_offset, *d_var, *mixed_offset, *mixed_var, *scale, *units;
    static int64_t size(const plan& m) { return 9 * m.channels + m.hidden; }
    rows(const plan& m, A* memory) {
        parts_of<A> rest{memory};
        for (A** row : {&offset, &root, &var, &d_z, &d_offset, &d_var, &mixed_offset, &mixed_var, &scale})
            *row = rest.take(m.channels);
        units = rest.take(m.hidden);
    }
};

// One layer, forward or backward: what it computes with, and its work on one sample or one slice of channels.
template <class T> struct layer {
    using A = accumulator<T>;
    const plan& m;
    const shape cells;
    const sizes s;
    const saved_parts<A> p;
    const int64_t C, K, count;
    const A eps;
    const wide_gate<A> ratio_gate;
    std::unique_ptr<A[]> scratch;
    A *mean, *var, *centre, *rest, *scale, *shift, *d_mean, *d_var, *batch_rstd, *thread_rows;  // by cells, but the last two
    A *h, *d_h, *d_x, *d_ratios, *d_var_ratios, *d_z, *d_batch;                   // backward
    statistics<A> st;

    layer(const plan& m_, bool backward)
        : m(m_), cells(m.cells()), s(m.small()), p(m, (A*)m.saved), C(m.channels), K(m.kinds),
          count(m.samples * m.channels), eps(A(m.eps)), ratio_gate(gate_of<A>(m)) {
        parts_of<A> counted{nullptr};
        place(counted, backward);
        scratch.reset(new A[counted.at - (A*)nullptr]);
        parts_of<A> taken{scratch.get()};
        place(taken, backward);
        st = {s, eps, mean, var, p.batch, p.batch + C, batch_rstd, {}, {}};
        std::copy(p.group_mean, p.group_mean + K, st.group_mean);
        std::copy(p.group_var, p.group_var + K, st.group_var);
    }

    // `scale` and `shift` are d_scale and d_shift after the first pass of backward.
    void place(parts_of<A>& part, bool backward) {
        const int64_t fresh = m.keeps_cells() ? 0 : count;
        for (A** row : {&mean, &scale, &shift}) *row = part.take(count);
        var = m.keeps_cells() ? p.var : part.take(fresh);
        centre = m.keeps_cells() ? p.centre : part.take(fresh);
        rest = m.keeps_cells() ? p.rest : part.take(fresh);
        batch_rstd = part.take(C);
        thread_rows = part.take(m.threads * rows<A>::size(m));
        if (!backward) return;
        for (A** row : {&d_mean, &d_var}) *row = part.take(count);
        for (A** row : {&h, &d_h}) *row = part.take(m.samples * m.hidden);
        for (A** row : {&d_ratios, &d_var_ratios}) *row = part.take(m.samples * K);
        d_x = part.take(m.samples * m.gate_inputs());
        d_z = part.take(m.from_gate() ? m.samples * K * m.reduced : 0);
        d_batch = part.take(2 * C);
    }

    stats<A> in() const { return {mean, var, centre, rest}; }
    const A* ratio(int64_t n) const { return p.ratios + n * K; }
    const A* var_ratio(int64_t n) const { return (m.var_logits ? p.var_ratios : p.ratios) + n * K; }
    const A* weight(int64_t k) const { return (const A*)m.weight + (m.affine_rows > 1 ? k * C : 0); }
    // Whether a thread takes a sample through all that is done with it, one after the other, while it is in its cache.
    bool by_sample() const { return m.samples >= m.threads; }
    // Whether all that is mixed of a kind is 0: `in`, whose offsets are 0, where its ratio is 0.
    bool idle(int64_t k) const { return !m.statistics && k == m.absent && s.kind[k] == instance; }
    bool correlates(int64_t k) const { return m.from_gate() && s.kind[k] != instance; }

    // task(n, rows) for all samples.
    template <class Task> void each_sample(Task task) const {
#pragma omp parallel num_threads(m.threads) if (m.threads > 1)
        {
            const rows<A> own(m, thread_rows + omp_get_thread_num() * rows<A>::size(m));
#pragma omp for schedule(static)
            for (int64_t n = 0; n < m.samples; ++n) task(n, own);
        }
    }

    // task(from, to, rows) for slices of channels, and other(from, to) for slices of the gate's hidden units.
    template <class Task, class Other> void each_slice(Task task, Other other) const {
        const int64_t slices = std::max<int64_t>(1, std::min(m.threads, C / 16));
        const int64_t gates = m.from_gate() ? std::min(m.threads, m.hidden) : 0;
#pragma omp parallel for num_threads(m.threads) schedule(dynamic, 1) if (m.threads > 1)
        for (int64_t i = 0; i < slices + gates; ++i) {
            const rows<A> own(m, thread_rows + omp_get_thread_num() * rows<A>::size(m));
            if (i < slices)
                task(i * C / slices, (i + 1) * C / slices, own);
            else
                other((i - slices) * m.hidden / gates, (i - slices + 1) * m.hidden / gates);
        }
    }

    // ---- forward ----

    void forward() {
        const bool at_once = by_sample() && !s.has(batch);
        // m, s = mean and variance of X over (H, W), of each cell
        if (!at_once) moments(cells, (const T*)m.x, in());
        pool();
        // ratios, scale and shift of each sample; Y = scale * (X - m) + shift
        const forward_map<A> map{in(), scale, shift};
        each_sample([&](int64_t n, const rows<A>& own) {
            if (at_once) sample_moments(cells, (const T*)m.x, in(), n);
            coefficients(n, own);
            if (by_sample()) map_sample(cells, (const T*)m.x, (const T*)m.x, (T*)m.y, map, n);
        });
        if (!by_sample()) map_cells(cells, (const T*)m.x, (const T*)m.x, (T*)m.y, map);
    }

    // What all samples share: mu, var of bn, 1 / sqrt(var + eps), and ratios that are no sample's own.
    void pool() {
        if (s.has(given)) {
            std::copy((A*)m.running_mean, (A*)m.running_mean + C, st.mu);
            std::copy((A*)m.running_var, (A*)m.running_var + C, st.pooled);
        }
        if (s.has(batch)) {
            each_slice([&](int64_t from, int64_t to, const rows<A>&) { st.pool_batch(from, to); },
                [](int64_t, int64_t) {});
            update_running(m, p.batch);
        }
        if (s.has(batch) || s.has(given)) st.root_batch();
        if (m.from_gate()) return;
        same_for_all(m, (const A*)m.logits, p.ratios);
        if (m.var_logits) same_for_all(m, (const A*)m.var_logits, p.var_ratios);
    }

    void coefficients(int64_t n, const rows<A>& own) const {
        st.pool_groups(n);
        if (m.from_gate()) gate_ratios(n, own);
        A *const a = scale + n * C, *const b = shift + n * C;
        if (m.statistics) {
            mix_statistics(n, 0, C, own);
            mixed_coefficients(C, eps, weight(0), (const A*)m.bias, own.mixed_offset, own.mixed_var, a, b);
            return;
        }
        // scale = sum_k q_k, shift = sum_k q_k offset_k + bias, q_k = weight_k ratio_k rstd_k
        std::fill(a, a + C, A(0));
        std::copy((A*)m.bias, (A*)m.bias + C, b);
        for (int64_t row = 1; row < m.affine_rows; ++row) add(C, (const A*)m.bias + row * C, b);
        for (int64_t k = 0; k < K; ++k) {
            if (idle(k)) continue;
            st.offsets(k, n, 0, C, own.offset);
            st.roots(k, n, 0, C, own.root);
            add_output(C, ratio(n)[k], weight(k), own.offset, own.root, a, b);
        }
    }

    // z = grouped sums of kernel * offset * rstd, v = z z^T, ratios = gate(v)
    void gate_ratios(int64_t n, const rows<A>& own) const {
        A *const z = p.z + n * K * m.reduced, *const v = p.v + n * K * K;
        for (int64_t k = 0; k < K; ++k) {
            A* const row = z + k * m.reduced;
            if (!correlates(k)) {
                std::fill(row, row + m.reduced, A(0));
                continue;
            }
            st.offsets(k, n, 0, C, own.offset);
            st.roots(k, n, 0, C, own.root);
            grouped_sums(C, m.reduced, (const A*)m.kernel, own.offset, own.root, row);
        }
        correlate(K, m.reduced, z, v);
        ratio_gate.units_of(v, own.units);
        ratio_gate.ratios_of(own.units, p.ratios + n * K);
    }

    // sum_k a_k offset_k and sum_k b_k var_k of a slice
    void mix_statistics(int64_t n, int64_t from, int64_t to, const rows<A>& own) const {
        std::fill(own.mixed_offset, own.mixed_offset + to - from, A(0));
        std::fill(own.mixed_var, own.mixed_var + to - from, A(0));
        for (int64_t k = 0; k < K; ++k) {
            st.offsets(k, n, from, to, own.offset);
            st.variances(k, n, from, to, own.var);
            add_statistics(
                to - from, ratio(n)[k], var_ratio(n)[k], own.offset, own.var, own.mixed_offset, own.mixed_var);
        }
    }

    // ---- backward ----

    void backward() {
        const T *const x = (const T*)m.x, *const dy = (const T*)m.dy;
        A *const d_scale = scale, *const d_shift = shift;
        const sums<A> out(d_shift, d_scale);
        if (s.has(batch) || s.has(given)) st.root_batch();
        // d_shift = sum dY, d_scale = sum dY (X - m), over (H, W)
        if (!by_sample()) {
            if (!m.keeps_cells()) moments(cells, x, in());
            gradient_sums(cells, dy, x, in(), out);
        }
        // d_ratios and, through softmax and gate, the gradients of the units, of v and of z, of each sample
        each_sample([&](int64_t n, const rows<A>& own) {
            if (by_sample()) {
                if (!m.keeps_cells()) sample_moments(cells, x, in(), n);
                sample_gradient_sums(cells, dy, x, in(), out, n);
            }
            if (m.keeps_cells()) {
                std::copy(centre + n * C, centre + (n + 1) * C, mean + n * C);
                add(C, rest + n * C, mean + n * C);
            }
            ratio_gradients(n, own);
        });
        shared_gradients();
        if (!m.dx) return;
        // gradients of m and s of each cell; dX = scale * (dY - mean dY) + (d_m + 2 d_s (X - m)) / (H W)
        const backward_map<A> map{in(), scale, d_shift, d_mean, d_var, A(1) / A(m.pixels)};
        each_sample([&](int64_t n, const rows<A>& own) {
            moment_gradients(n, own);
            if (by_sample()) map_sample(cells, x, dy, (T*)m.dx, map, n);
        });
        if (!by_sample()) map_cells(cells, x, dy, (T*)m.dx, map);
    }

    // What is summed over samples: gradients of parameters, of the batch's mu and var.
    void shared_gradients() const {
        each_slice([&](int64_t from, int64_t to, const rows<A>& own) { channel_gradients(from, to, own); },
            [&](int64_t from, int64_t to) {
                ratio_gate.weight_gradients(
                    m.samples, from, to, p.v, h, d_ratios, d_h, (A*)m.d_w1, (A*)m.d_b1, (A*)m.d_w2);
            });
        logit_gradients();
    }

    // d_ratios of a sample, see ratio_gradient, and dot for SN; and through their gate
    void ratio_gradients(int64_t n, const rows<A>& own) const {
        const A *const d_scale = scale + n * C, *const d_shift = shift + n * C;
        A *const of_means = d_ratios + n * K, *const of_vars = d_var_ratios + n * K;
        if (m.statistics) {
            mix_statistics(n, 0, C, own);
            mixed_gradients(C, eps, d_scale, d_shift, weight(0), own.mixed_offset, own.mixed_var);
        }
        for (int64_t k = 0; k < K; ++k) {
            of_means[k] = of_vars[k] = 0;
            if (idle(k)) continue;
            st.offsets(k, n, 0, C, own.offset);
            if (m.statistics) {
                st.variances(k, n, 0, C, own.var);
                of_means[k] = dot(C, own.mixed_offset, own.offset);
                of_vars[k] = dot(C, own.mixed_var, own.var);
                if (!m.var_logits) of_means[k] += of_vars[k];
            } else {
                st.roots(k, n, 0, C, own.root);
                of_means[k] = ratio_gradient(C, d_scale, d_shift, weight(k), own.offset, own.root);
            }
        }
        if (m.from_gate()) gate_gradients(n);
    }

    // of a sample, through softmax, the two linear layers and v = z z^T
    void gate_gradients(int64_t n) const {
        const A* const v = p.v + n * K * K;
        A *const units = h + n * m.hidden, *const d_v = d_x + n * K * K;
        ratio_gate.units_of(v, units);
        ratio_gate.backward(units, ratio(n), d_ratios + n * K, d_h + n * m.hidden, d_v);
        correlate_backward(K, m.reduced, p.z + n * K * m.reduced, d_v, d_z + n * K * m.reduced);
    }

    // Sums over samples of a slice of channels.
    void channel_gradients(int64_t from, int64_t to, const rows<A>& own) const {
        const int64_t width = to - from;
        A *const d_mu = d_batch, *const d_pooled = d_batch + C, *const d_bias = (A*)m.d_bias;
        for (int64_t row = 0; row < m.affine_rows; ++row) {
            std::fill((A*)m.d_weight + row * C + from, (A*)m.d_weight + row * C + to, A(0));
        }
        std::fill(d_bias + from, d_bias + to, A(0));
        std::fill(d_mu + from, d_mu + to, A(0));
        std::fill(d_pooled + from, d_pooled + to, A(0));
        if (m.from_gate()) std::fill((A*)m.d_kernel + from, (A*)m.d_kernel + to, A(0));
        for (int64_t n = 0; n < m.samples; ++n) {
            const A *const d_scale = scale + n * C + from, *const d_shift = shift + n * C + from;
            add(width, d_shift, d_bias + from);
            if (m.statistics) {
                mix_statistics(n, from, to, own);
                add_mixed_weight_gradients(
                    width, eps, d_scale, d_shift, own.mixed_offset, own.mixed_var, (A*)m.d_weight + from);
                mixed_gradients(
                    width, eps, d_scale, d_shift, weight(0) + from, own.mixed_offset, own.mixed_var);
            }
            for (int64_t k = 0; k < K; ++k) {
                if (idle(k)) continue;
                kind_gradients(n, k, from, to, own, s.kind[k] == batch);
                if (!m.statistics)
                    add_weight_gradients(width, ratio(n)[k], d_scale, d_shift, own.offset, own.root,
                        (A*)m.d_weight + (m.affine_rows > 1 ? k * C : 0) + from);
                if (correlates(k))
                    add_kernel_gradients(width, own.d_z, own.offset, own.root, (A*)m.d_kernel + from);
                if (s.kind[k] != batch) continue;
                // d_mu = -sum d_offset, d_var = sum d_var
                for (int64_t c = 0; c < width; ++c) d_mu[from + c] -= own.d_offset[c];
                add(width, own.d_var, d_pooled + from);
            }
        }
        for (int64_t row = 1; row < m.affine_rows; ++row) std::copy(d_bias + from, d_bias + to, d_bias + row * C + from);
    }

    // Offsets and roots of a kind in a slice of a sample and, where `all`, the gradients of its offsets and variances.
    void kind_gradients(int64_t n, int64_t k, int64_t from, int64_t to, const rows<A>& own, bool all) const {
        const int64_t width = to - from;
        st.offsets(k, n, from, to, own.offset);
        if (!m.statistics || correlates(k)) st.roots(k, n, from, to, own.root);
        if (correlates(k)) spread(d_z + (n * K + k) * m.reduced, C / m.reduced, from, to, own.d_z);
        if (!all) return;
        if (m.statistics) {
            scaled(width, ratio(n)[k], own.mixed_offset, own.d_offset);
            scaled(width, var_ratio(n)[k], own.mixed_var, own.d_var);
        } else {
            output_gradients(width, ratio(n)[k], scale + n * C + from, shift + n * C + from, weight(k) + from,
                own.offset, own.root, own.d_offset, own.d_var);
        }
        if (correlates(k))
            add_xhat_gradients(
                width, own.d_z, (const A*)m.kernel + from, own.offset, own.root, own.d_offset, own.d_var);
    }

    // Of a sample: the gradients of the moments of its cells, and its scale again, which takes d_scale's place.
    void moment_gradients(int64_t n, const rows<A>& own) const {
        A *const of_means = d_mean + n * C, *const of_vars = d_var + n * C, *const a = scale + n * C;
        std::fill(of_means, of_means + C, A(0));
        std::fill(of_vars, of_vars + C, A(0));
        std::fill(own.scale, own.scale + C, A(0));
        if (m.statistics) {
            mix_statistics(n, 0, C, own);
            for (int64_t c = 0; c < C; ++c) own.scale[c] = weight(0)[c] * rstd(own.mixed_var[c], eps);
            mixed_gradients(C, eps, a, shift + n * C, weight(0), own.mixed_offset, own.mixed_var);
        }
        for (int64_t k = 0; k < K; ++k) {
            if (idle(k)) continue;
            kind_gradients(n, k, 0, C, own, true);
            add_moment_gradients(s, k, own.offset, own.d_offset, own.d_var, of_means, of_vars);
            if (!m.statistics) add_scale(C, ratio(n)[k], weight(k), own.root, own.scale);
        }
        for (int64_t k = 0; k < K; ++k) {
            if (s.kind[k] != batch) continue;
            st.offsets(k, n, 0, C, own.offset);
            add_batch_gradients(C, m.samples, own.offset, d_batch, d_batch + C, of_means, of_vars);
        }
        std::copy(own.scale, own.scale + C, a);
    }

    // ---- between the passes alone: moments, scale, shift and their gradients are the caller's ----

    void use_moments(const A* means, const A* variances) {
        st.mean = mean = const_cast<A*>(means);
        st.var = var = const_cast<A*>(variances);
    }

    void between_forward() {
        pool();
        each_sample([&](int64_t n, const rows<A>& own) { coefficients(n, own); });
    }

    // From d_scale and d_shift to dX = scale dY + slope (X - m) + offset, of maps of so many pixels.
    void between_backward(const A* d_scale, const A* d_shift, int64_t pixels, A* slope, A* offset) {
        std::copy(d_scale, d_scale + count, scale);
        std::copy(d_shift, d_shift + count, shift);
        if (s.has(batch) || s.has(given)) st.root_batch();
        each_sample([&](int64_t n, const rows<A>& own) { ratio_gradients(n, own); });
        shared_gradients();
        each_sample([&](int64_t n, const rows<A>& own) {
            moment_gradients(n, own);
            for (int64_t i = n * C; i < (n + 1) * C; ++i) {
                slope[i] = 2 * d_var[i] / A(pixels);
                offset[i] = (d_mean[i] - scale[i] * d_shift[i]) / A(pixels);
            }
        });
    }

    // The gradients of the gate's last bias, or of the logits that all samples share.
    void logit_gradients() const {
        if (!m.from_gate()) {
            same_for_all_backward(m, p.ratios, d_ratios, (A*)m.d_logits);
            if (m.var_logits) same_for_all_backward(m, p.var_ratios, d_var_ratios, (A*)m.d_var_logits);
            return;
        }
        A* const of_bias = (A*)m.d_b2;
        std::fill(of_bias, of_bias + K, A(0));
        for (int64_t n = 0; n < m.samples; ++n) add(K, d_ratios + n * K, of_bias);
    }
};

// ---- the operators ----

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using Integers = std::vector<int64_t>;

template <class Call> void by_type(ScalarType type, Call call) {
    switch (type) {
        case ScalarType::Float:
            return call(static_cast<float*>(nullptr));
        case ScalarType::Double:
            return call(static_cast<double*>(nullptr));
        case ScalarType::BFloat16:
            return call(static_cast<bfloat16*>(nullptr));
#ifdef __FLT16_MAX__
        case ScalarType::Half:
            return call(static_cast<float16*>(nullptr));
#endif
        default:
            STD_TORCH_CHECK(false, "en_norm: expected a floating-point type");
    }
}

// New memory. torch::stable::empty_like looks its operator up by name at each call: on small maps that is much.
template <class Sizes> Tensor new_tensor(const Sizes& sizes, const Sizes& strides, int32_t type) {
    AtenTensorHandle made;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        sizes.size(), sizes.data(), strides.data(), type, aoti_torch_device_type_cpu(), 0, &made));
    return Tensor(made);
}

Tensor new_like(const Tensor& x) {
    int32_t type;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(x.get(), &type));
    return new_tensor(x.sizes(), x.strides(), type);
}

Tensor new_rows(std::vector<int64_t> sizes, ScalarType moments) {
    std::vector<int64_t> strides(sizes.size(), 1);
    for (size_t i = sizes.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * sizes[i];
    return new_tensor(sizes, strides,
        moments == ScalarType::Double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32());
}

ScalarType moments_type(const Tensor& x) {
    return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Where a tensor lies that is as large as is read or written of it: anything else would be other memory.
void* data_of(const char* name, const Tensor& part, int64_t count, ScalarType type) {
    STD_TORCH_CHECK(part.numel() == count && part.scalar_type() == type && part.is_contiguous(), "en_norm: ", name,
        " has ", part.numel(), " values: expected ", count, " of the moments' type, without gaps");
    return part.data_ptr();
}

// Of a dense x (N, C, H, W), NCHW or channels_last.
shape shape_of(const Tensor& x) {
    STD_TORCH_CHECK(x.dim() == 4, "en_norm: expected (N, C, H, W)");
    const auto size = x.sizes();
    // another thread costs more than it saves on less than 8192 values
    const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), x.numel() / 8192 + 1);
    shape s{size[0], size[1], size[2] * size[3], threads, !x.is_contiguous()};
    if (s.channels_last) {
        const auto stride = x.strides();
        const int64_t dense[4] = {size[1] * size[2] * size[3], 1, size[3] * size[1], size[1]};
        for (int i = 0; i < 4; ++i)
            STD_TORCH_CHECK(
                size[i] == 1 || stride[i] == dense[i], "en_norm: expected NCHW or channels_last, without gaps");
    }
    return s;
}

// A tensor as x is, and laid out as x is.
void* data_like(const char* name, const Tensor& part, const Tensor& x) {
    const auto size = x.sizes(), stride = x.strides();
    bool same = part.dim() == 4 && part.scalar_type() == x.scalar_type();
    for (int i = 0; same && i < 4; ++i)
        same = part.sizes()[i] == size[i] && (size[i] == 1 || part.strides()[i] == stride[i]);
    STD_TORCH_CHECK(same, "en_norm: ", name, ": expected x's type, shape and layout");
    return part.data_ptr();
}

// How a layer is called: parameters are weight and bias, then the ratios' kernel, w1, b1, w2, b2 (from correlations)
// or logits and, for variances of their own, var_logits (static).
struct setting {
    Integers kinds, groups;
    int64_t absent, source, reduced, activation;
    bool statistics;
    double eps, gate_scale;
};

struct slot {
    void* plan::*member;
    int64_t size;
};
using slots = std::array<slot, 7>;

// Which member each of `count` parameters is for, and how many values it has.
slots slots_of(const plan& m, bool gradients, size_t count) {
    const int64_t C = m.channels, K = m.kinds, I = m.gate_inputs(), H = m.hidden, rows = m.affine_rows * C;
    const bool g = gradients, gate = m.from_gate();
    STD_TORCH_CHECK(gate ? count == 7 : count == 3 || count == 4, "en_norm: ", count, " parameters: expected ",
        gate ? "7" : "3 or 4");
    const slot weight{g ? &plan::d_weight : &plan::weight, rows}, bias{g ? &plan::d_bias : &plan::bias, rows};
    if (!gate)
        return {weight, bias, slot{g ? &plan::d_logits : &plan::logits, K},
            slot{g ? &plan::d_var_logits : &plan::var_logits, K}};
    return {weight, bias, slot{g ? &plan::d_kernel : &plan::kernel, C}, slot{g ? &plan::d_w1 : &plan::w1, H * I},
        slot{g ? &plan::d_b1 : &plan::b1, H}, slot{g ? &plan::d_w2 : &plan::w2, K * H},
        slot{g ? &plan::d_b2 : &plan::b2, K}};
}

void place(plan& m, const char* name, const Tensors& parts, bool gradients, ScalarType type) {
    const slots all = slots_of(m, gradients, parts.size());
    for (size_t i = 0; i < parts.size(); ++i) m.*all[i].member = data_of(name, parts[i], all[i].size, type);
}

plan plan_of(const Tensor& x, const Tensors& parameters, const setting& s) {
    const shape cells = shape_of(x);
    const int64_t K = s.kinds.size(), first = 3;  // of w1
    const bool from_gate = s.source == from_correlations;
    STD_TORCH_CHECK(
        0 < K && K <= 4 && s.groups.size() == s.kinds.size(), "en_norm: expected 1 to 4 kinds and as many groups");
    STD_TORCH_CHECK(from_gate || s.source == from_logits, "en_norm: source ", s.source, ": expected 0 or 1");
    STD_TORCH_CHECK(int64_t(parameters.size()) >= 3 &&
                        (!from_gate || (int64_t(parameters.size()) > first && parameters[first].dim() == 2)),
        "en_norm: expected more parameters, of which w1 has two axes");
    plan m{};
    m.samples = cells.samples;
    m.channels = cells.channels;
    m.pixels = cells.pixels;
    m.threads = cells.threads;
    m.channels_last = cells.channels_last;
    m.kinds = K;
    for (int64_t k = 0; k < K; ++k) {
        STD_TORCH_CHECK(
            0 <= s.kinds[k] && s.kinds[k] <= grouped, "en_norm: kind ", s.kinds[k], ": expected 0 to ", +grouped);
        STD_TORCH_CHECK(
            s.groups[k] > 0 && m.channels % s.groups[k] == 0, "en_norm: expected groups that divide the channels");
        m.kind[k] = s.kinds[k];
        m.groups[k] = s.groups[k];
    }
    STD_TORCH_CHECK(s.reduced > 0 && (!from_gate || m.channels % s.reduced == 0),
        "en_norm: expected `reduced` to divide the channels");
    STD_TORCH_CHECK(-1 <= s.absent && s.absent < K, "en_norm: absent ", s.absent, ": expected -1 to ", K - 1);
    m.absent = s.absent;
    m.source = s.source;
    m.reduced = s.reduced;
    m.activation = s.activation;
    m.statistics = s.statistics;
    m.eps = s.eps;
    m.gate_scale = s.gate_scale;
    m.affine_rows = m.statistics ? 1 : parameters[0].numel() == m.channels ? 1 : K;
    m.hidden = from_gate ? parameters[first].sizes()[0] : 0;
    place(m, "a parameter", parameters, false, moments_type(x));
    m.x = x.data_ptr();
    return m;
}

int64_t saved_size(const plan& m) { return saved_parts<char>(m, nullptr).end - (char*)nullptr; }

std::tuple<Tensor, Tensor, Tensor> layer_forward(const Tensor& x, const Tensors& parameters,
    std::optional<Tensor> running_mean, std::optional<Tensor> running_var, std::optional<Tensor> batches,
    double momentum, bool keep, const Integers& kinds, const Integers& groups, int64_t absent, int64_t source,
    int64_t reduced, int64_t activation, bool statistics, double eps, double gate_scale) {
    plan m = plan_of(x, parameters, {kinds, groups, absent, source, reduced, activation, statistics, eps, gate_scale});
    const ScalarType type = moments_type(x);
    const auto has = [&](int64_t kind) { return std::find(kinds.begin(), kinds.end(), kind) != kinds.end(); };
    if (has(given) || (has(batch) && running_mean)) {
        STD_TORCH_CHECK(running_mean && running_var, "en_norm: expected running averages");
        m.running_mean = data_of("running_mean", *running_mean, m.channels, type);
        m.running_var = data_of("running_var", *running_var, m.channels, type);
    }
    if (has(batch) && running_mean) {
        STD_TORCH_CHECK(bool(batches), "en_norm: expected a count of batches");
        m.batches = (int64_t*)data_of("batches", *batches, 1, ScalarType::Long);
        m.momentum = momentum;
    }
    Tensor y = new_like(x), ratios = new_rows({m.samples, m.kinds}, type);
    Tensor saved = new_rows({keep ? saved_size(m) : 0}, type);
    m.y = data_like("y", y, x);
    by_type(x.scalar_type(), [&](auto* t) {
        using T = std::remove_pointer_t<decltype(t)>;
        using A = accumulator<T>;
        const std::unique_ptr<A[]> passing(keep ? nullptr : new A[saved_size(m)]);
        m.saved = keep ? saved.data_ptr() : passing.get();
        layer<T> run(m, false);
        run.forward();
        std::copy(run.p.ratios, run.p.ratios + m.samples * m.kinds, (A*)ratios.data_ptr());
    });
    return {y, ratios, saved};
}

std::tuple<Tensor, Tensors> layer_backward(const Tensor& dy, const Tensor& x, const Tensor& saved,
    const Tensors& parameters, bool for_input, const Integers& kinds, const Integers& groups, int64_t absent,
    int64_t source, int64_t reduced, int64_t activation, bool statistics, double eps, double gate_scale) {
    plan m = plan_of(x, parameters, {kinds, groups, absent, source, reduced, activation, statistics, eps, gate_scale});
    Tensors grads;
    grads.reserve(parameters.size());
    for (const Tensor& part : parameters) grads.push_back(new_like(part));
    place(m, "a gradient", grads, true, moments_type(x));
    Tensor dx = for_input ? new_like(x) : new_rows({0}, moments_type(x));
    m.dy = data_like("dy", dy, x);
    m.dx = for_input ? data_like("dx", dx, x) : nullptr;
    m.saved = data_of("saved", saved, saved_size(m), moments_type(x));
    by_type(x.scalar_type(), [&](auto* t) { layer<std::remove_pointer_t<decltype(t)>>(m, true).backward(); });
    return {dx, grads};
}

// What maps of `decided` pixels decide, those of training or, where there were none, these: see CombinedNormalizer.
struct thresholds {
    int64_t absent, gate_scale;  // from so many pixels on, no ratio is 0 for good, and the gate's scale is 1
    void apply(setting& s, int64_t decided) const {
        if (decided >= absent) s.absent = -1;
        if (decided >= gate_scale) s.gate_scale = 1;
    }
};

int64_t* count_of(const char* name, const Tensor& part) { return (int64_t*)data_of(name, part, 1, ScalarType::Long); }

// mean and var (N, C, 1, 1) -> scale, shift (N, C, 1, 1), ratios (N, K), batch (2, C) or nothing, decided, and what
// coefficients_backward needs.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> coefficients(const Tensor& mean, const Tensor& var,
    const Tensors& parameters, std::optional<Tensor> running_mean, std::optional<Tensor> running_var,
    const Tensor& trained_pixels, int64_t pixels, bool keep, const Integers& kinds, const Integers& groups,
    int64_t absent, int64_t source, int64_t reduced, int64_t activation, bool statistics, double eps,
    double gate_scale, int64_t min_pixels, int64_t gate_pixels) {
    const ScalarType type = moments_type(mean);
    const int64_t trained = *count_of("trained_pixels", trained_pixels), decider = trained > 0 ? trained : pixels;
    setting s{kinds, groups, absent, source, reduced, activation, statistics, eps, gate_scale};
    thresholds{min_pixels, gate_pixels}.apply(s, decider);
    plan m = plan_of(mean, parameters, s);
    const auto has = [&](int64_t kind) { return std::find(kinds.begin(), kinds.end(), kind) != kinds.end(); };
    if (has(given)) {
        STD_TORCH_CHECK(running_mean && running_var, "en_norm: expected running averages");
        m.running_mean = data_of("running_mean", *running_mean, m.channels, type);
        m.running_var = data_of("running_var", *running_var, m.channels, type);
    }
    const auto fresh = [&](std::vector<int64_t> size, ScalarType of) { return torch::stable::new_empty(mean, size, of); };
    const std::vector<int64_t> cells{m.samples, m.channels, 1, 1};
    Tensor scale = fresh(cells, type), shift = fresh(cells, type), ratios = fresh({m.samples, m.kinds}, type);
    Tensor pooled = fresh({has(batch) ? 2 : 0, m.channels}, type), decided = fresh({}, ScalarType::Long);
    Tensor saved = fresh({keep ? saved_size(m) : 0}, type);
    *count_of("decided", decided) = decider;
    by_type(type, [&](auto* t) {
        using A = accumulator<std::remove_pointer_t<decltype(t)>>;
        const int64_t count = m.samples * m.channels;
        const std::unique_ptr<A[]> passing(keep ? nullptr : new A[saved_size(m)]);
        m.saved = keep ? saved.data_ptr() : passing.get();
        layer<A> run(m, false);
        run.use_moments((A*)data_of("mean", mean, count, type), (A*)data_of("var", var, count, type));
        run.scale = (A*)scale.data_ptr();
        run.shift = (A*)shift.data_ptr();
        run.between_forward();
        std::copy(run.p.ratios, run.p.ratios + m.samples * m.kinds, (A*)ratios.data_ptr());
        std::copy(run.p.batch, run.p.batch + pooled.numel(), (A*)pooled.data_ptr());
    });
    return {scale, shift, ratios, pooled, decided, saved};
}

// d_scale, d_shift (N, C, 1, 1) -> slope, offset (N, C, 1, 1) of dX = scale dY + slope (X - m) + offset, and the
// gradients of the parameters.
std::tuple<Tensor, Tensor, Tensors> coefficients_backward(const Tensor& d_scale, const Tensor& d_shift,
    const Tensor& mean, const Tensor& var, const Tensor& saved, const Tensor& decided, const Tensors& parameters,
    int64_t pixels, const Integers& kinds, const Integers& groups, int64_t absent, int64_t source, int64_t reduced,
    int64_t activation, bool statistics, double eps, double gate_scale, int64_t min_pixels, int64_t gate_pixels) {
    const ScalarType type = moments_type(mean);
    setting s{kinds, groups, absent, source, reduced, activation, statistics, eps, gate_scale};
    thresholds{min_pixels, gate_pixels}.apply(s, *count_of("decided", decided));
    plan m = plan_of(mean, parameters, s);
    Tensors grads;
    for (const Tensor& part : parameters) grads.push_back(torch::stable::empty_like(part));
    place(m, "a gradient", grads, true, type);
    Tensor slope = torch::stable::empty_like(mean), offset = torch::stable::empty_like(mean);
    m.saved = data_of("saved", saved, saved_size(m), type);
    by_type(type, [&](auto* t) {
        using A = accumulator<std::remove_pointer_t<decltype(t)>>;
        const auto cells = [&](const char* name, const Tensor& part) {
            return (A*)data_of(name, part, m.samples * m.channels, type);
        };
        layer<A> run(m, true);
        run.use_moments(cells("mean", mean), cells("var", var));
        run.between_backward(cells("d_scale", d_scale), cells("d_shift", d_shift), pixels, cells("slope", slope),
            cells("offset", offset));
    });
    return {slope, offset, grads};
}

// The four passes, for a dense x; everything else of the moments' type and by cells.
struct pass {
    shape s;
    ScalarType type;
    explicit pass(const Tensor& x) : s(shape_of(x)), type(moments_type(x)) {}
    template <class A> A* cells(const char* name, const Tensor& part, int64_t rows = 1) const {
        return (A*)data_of(name, part, rows * s.cells(), type);
    }
};

#define EN_TYPE(t)                                \
    using T = std::remove_pointer_t<decltype(t)>; \
    using A [[maybe_unused]] = accumulator<T>

Tensor pass_moments(const Tensor& x) {
    const pass p(x);
    Tensor found = new_rows({4, p.s.samples, p.s.channels}, p.type);
    by_type(x.scalar_type(), [&](auto* t) {
        EN_TYPE(t);
        moments(p.s, (const T*)x.data_ptr(), stats<A>((A*)found.data_ptr(), p.s.cells()));
    });
    return found;
}

Tensor pass_affine(const Tensor& x, const Tensor& stats_, const Tensor& scale, const Tensor& shift) {
    const pass p(x);
    Tensor y = new_like(x);
    void* const to = data_like("y", y, x);
    by_type(x.scalar_type(), [&](auto* t) {
        EN_TYPE(t);
        const stats<A> in(p.cells<A>("stats", stats_, 4), p.s.cells());
        const forward_map<A> map{in, p.cells<A>("scale", scale), p.cells<A>("shift", shift)};
        map_cells(p.s, (const T*)x.data_ptr(), (const T*)x.data_ptr(), (T*)to, map);
    });
    return y;
}

Tensor pass_gradient_sums(const Tensor& dy, const Tensor& x, const Tensor& stats_) {
    const pass p(x);
    Tensor found = new_rows({2, p.s.samples, p.s.channels}, p.type);
    const void* const from = data_like("dy", dy, x);
    by_type(x.scalar_type(), [&](auto* t) {
        EN_TYPE(t);
        const stats<A> in(p.cells<A>("stats", stats_, 4), p.s.cells());
        A* const to = (A*)found.data_ptr();
        gradient_sums(p.s, (const T*)from, (const T*)x.data_ptr(), in, sums<A>(to, to + p.s.cells()));
    });
    return found;
}

Tensor pass_input_gradient(const Tensor& dy, const Tensor& x, const Tensor& stats_, const Tensor& sum_dy,
    const Tensor& scale, const Tensor& d_mean, const Tensor& d_var) {
    const pass p(x);
    Tensor dx = new_like(x);
    const void* const from = data_like("dy", dy, x);
    void* const to = data_like("dx", dx, x);
    by_type(x.scalar_type(), [&](auto* t) {
        EN_TYPE(t);
        const stats<A> in(p.cells<A>("stats", stats_, 4), p.s.cells());
        const backward_map<A> map{in, p.cells<A>("scale", scale), p.cells<A>("sum_dy", sum_dy),
            p.cells<A>("d_mean", d_mean), p.cells<A>("d_var", d_var), A(1) / A(p.s.pixels)};
        map_cells(p.s, (const T*)x.data_ptr(), (const T*)from, (T*)to, map);
    });
    return dx;
}

}  // namespace

extern "C" int en_has_float16() {
#ifdef __FLT16_MAX__
    return 1;
#else
    return 0;
#endif
}

STABLE_TORCH_LIBRARY(en_norm, m) {
    m.def("moments(Tensor x) -> Tensor");
    m.def("affine(Tensor x, Tensor stats, Tensor scale, Tensor shift) -> Tensor");
    m.def("gradient_sums(Tensor dy, Tensor x, Tensor stats) -> Tensor");
    m.def(
        "input_gradient(Tensor dy, Tensor x, Tensor stats, Tensor sum_dy, Tensor scale, Tensor d_mean, Tensor d_var) "
        "-> Tensor");
    m.def(
        "layer_forward(Tensor x, Tensor[] parameters, Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor(c!)? "
        "batches, float momentum, bool keep, int[] kinds, int[] groups, int absent, int source, int reduced, int "
        "activation, bool statistics, float eps, float gate_scale) -> (Tensor y, Tensor ratios, Tensor saved)");
    m.def(
        "layer_backward(Tensor dy, Tensor x, Tensor saved, Tensor[] parameters, bool for_input, int[] kinds, int[] "
        "groups, "
        "int absent, int source, int reduced, int activation, bool statistics, float eps, float gate_scale) -> (Tensor dx, Tensor[] grads)");
    m.def(
        "coefficients(Tensor mean, Tensor var, Tensor[] parameters, Tensor? running_mean, Tensor? running_var, Tensor "
        "trained_pixels, SymInt pixels, bool keep, int[] kinds, int[] groups, int absent, int source, int reduced, int "
        "activation, bool statistics, float eps, float gate_scale, int min_pixels, int gate_pixels) -> (Tensor scale, "
        "Tensor shift, Tensor ratios, Tensor batch, Tensor decided, Tensor saved)");
    m.def(
        "coefficients_backward(Tensor d_scale, Tensor d_shift, Tensor mean, Tensor var, Tensor saved, Tensor decided, "
        "Tensor[] parameters, SymInt pixels, int[] kinds, int[] groups, int absent, int source, int reduced, int "
        "activation, bool statistics, float eps, float gate_scale, int min_pixels, int gate_pixels) -> (Tensor slope, "
        "Tensor offset, Tensor[] grads)");
}

STABLE_TORCH_LIBRARY_IMPL(en_norm, CPU, m) {
    m.impl("moments", TORCH_BOX(&pass_moments));
    m.impl("affine", TORCH_BOX(&pass_affine));
    m.impl("gradient_sums", TORCH_BOX(&pass_gradient_sums));
    m.impl("input_gradient", TORCH_BOX(&pass_input_gradient));
    m.impl("layer_forward", TORCH_BOX(&layer_forward));
    m.impl("layer_backward", TORCH_BOX(&layer_backward));
    m.impl("coefficients", TORCH_BOX(&coefficients));
    m.impl("coefficients_backward", TORCH_BOX(&coefficients_backward));
}
