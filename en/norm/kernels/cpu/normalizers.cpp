// What en/norm calls on a CPU: the four passes by themselves, and a layer (IN, LN, GN, SN, EN) whole, forward and backward.
//
// One call each way for a whole layer, because on small inputs the time goes into calls: some hundred operations of torch on
// (N, K, C) take longer than the four passes over (N, C, H, W). ../cpu.py has these structures again.

#include <memory>
#include <type_traits>

#include "passes.hpp"
#include "statistics.hpp"
#include "gate.hpp"

namespace {

enum source : int64_t { from_correlations, from_pooled, from_logits };   // SN's ratios are logits, two sets of them

struct plan {
    int64_t samples, channels, pixels, threads, channels_last;
    int64_t kinds, kind[4], groups[4];                       // the statistics that are mixed
    int64_t source, reduced, hidden, activation;             // where the ratios come from
    int64_t statistics, affine_rows, update;                 // mix statistics, not outputs; rows of weight; update averages
    double eps, share;                                       // share of this batch in the running averages

    // parameters, and where their gradients go: null where there are none
    void *weight, *bias, *kernel, *w1, *b1, *w2, *b2, *logits, *var_logits;
    void *d_weight, *d_bias, *d_kernel, *d_w1, *d_b1, *d_w2, *d_b2, *d_logits, *d_var_logits;
    void *running_mean, *running_var;
    void *x, *y, *dy, *dx;                                   // (N, C, H, W)
    void *saved;                                             // what forward leaves for backward, of saved_size() values

    shape cells() const { return {samples, channels, pixels, threads, channels_last != 0}; }
    sizes small() const {
        sizes s{samples, kinds, channels, threads, {}, {}};
        std::copy(kind, kind + 4, s.kind);
        std::copy(groups, groups + 4, s.groups);
        return s;
    }
    int64_t gate_inputs() const { return source == from_pooled ? channels : kinds * kinds; }
};

// The parts of `saved`, one after the other; ratios first, where Python finds them.
template <class A> struct saved_parts {
    A *ratios, *var_ratios, *stats, *offset, *var, *scale, *shift, *mixed_offset, *batch, *z, *v, *hidden, *end;
    saved_parts(const plan& m, A* at) {
        const int64_t ratio = m.samples * m.kinds, cells = m.samples * m.channels;
        const auto take = [&](int64_t count) {
            A* const here = at;
            at += count;
            return here;
        };
        ratios = take(ratio);
        var_ratios = take(ratio);
        stats = take(4 * cells);
        offset = take(m.kinds * cells);
        var = take(m.kinds * cells);
        scale = take(cells);
        shift = take(cells);
        mixed_offset = take(m.statistics ? cells : 0);
        batch = take(2 * m.channels);
        z = take(m.source == from_correlations ? ratio * m.reduced : 0);
        v = take(m.source == from_correlations ? ratio * m.kinds : 0);
        hidden = take(m.source == from_logits ? 0 : m.samples * m.hidden);
        end = at;
    }
};

template <class A> gate<A> gate_of(const plan& m) {
    return {m.gate_inputs(), m.hidden, m.kinds, m.activation, (A*)m.w1, (A*)m.b1, (A*)m.w2, (A*)m.b2};
}

template <class A> void same_for_all(const plan& m, const A* logits, A* ratios) {
    std::vector<A> row(logits, logits + m.kinds);
    softmax(m.kinds, row.data());
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
    const A share = A(m.share), count = A(m.samples * m.pixels), unbiased = count / std::max(count - 1, A(1));
    A *mean = (A*)m.running_mean, *var = (A*)m.running_var;
    for (int64_t c = 0; c < m.channels; ++c) {
        mean[c] += share * (batch[c] - mean[c]);
        var[c] += share * (batch[m.channels + c] * unbiased - var[c]);
    }
}

template <class T> void forward(const plan& m) {
    using A = accumulator<T>;
    const saved_parts<A> p(m, (A*)m.saved);
    const sizes s = m.small();
    const int64_t cells = m.samples * m.channels;
    const A eps = A(m.eps);
    moments(m.cells(), (const T*)m.x, p.stats);
    const A *mean = p.stats, *var = p.stats + cells;
    if (std::find(s.kind, s.kind + s.kinds, given) != s.kind + s.kinds) {
        std::copy((A*)m.running_mean, (A*)m.running_mean + m.channels, p.batch);
        std::copy((A*)m.running_var, (A*)m.running_var + m.channels, p.batch + m.channels);
    }
    statistics(s, mean, var, p.batch, p.offset, p.var);
    if (m.update) update_running(m, p.batch);
    if (m.source == from_logits) {
        same_for_all(m, (const A*)m.logits, p.ratios);
        if (m.var_logits) same_for_all(m, (const A*)m.var_logits, p.var_ratios);
    } else {
        if (m.source == from_correlations) correlations(s, m.reduced, eps, p.offset, p.var, (const A*)m.kernel, p.z, p.v);
        gate_forward(gate_of<A>(m), m.samples, m.threads, m.source == from_pooled ? mean : p.v, p.hidden, p.ratios);
    }
    const A* const var_ratios = m.var_logits ? p.var_ratios : p.ratios;
    if (m.statistics) {
        mix_statistics(s, eps, p.ratios, var_ratios, p.offset, p.var, (const A*)m.weight, (const A*)m.bias, p.scale, p.shift,
                       p.mixed_offset);
    } else {
        mix_outputs(s, m.affine_rows, eps, p.ratios, p.offset, p.var, (const A*)m.weight, (const A*)m.bias, p.scale, p.shift);
    }
    map_cells(m.cells(), (const T*)m.x, (const T*)m.x, (T*)m.y, forward_map<A>{{p.stats, cells}, p.scale, p.shift});
}

template <class T> void backward(const plan& m) {
    using A = accumulator<T>;
    const saved_parts<A> p(m, (A*)m.saved);
    const sizes s = m.small();
    const int64_t cells = m.samples * m.channels, ratio = m.samples * m.kinds, inputs = m.gate_inputs();
    const A eps = A(m.eps);
    const std::unique_ptr<A[]> scratch(new A[(4 + 2 * m.kinds) * cells + 2 * ratio + 2 * m.channels + m.samples * inputs]);
    A *const d_shift = scratch.get(), *const d_scale = d_shift + cells, *const d_mean = d_scale + cells;
    A *const d_cell_var = d_mean + cells, *const d_offset = d_cell_var + cells, *const d_var = d_offset + m.kinds * cells;
    A *const d_ratios = d_var + m.kinds * cells, *const d_var_ratios = d_ratios + ratio;
    A *const d_batch = d_var_ratios + ratio, *const d_inputs = d_batch + 2 * m.channels;

    gradient_sums(m.cells(), (const T*)m.dy, (const T*)m.x, p.stats, d_shift);
    const A* const var_ratios = m.var_logits ? p.var_ratios : p.ratios;
    if (m.statistics) {
        mix_statistics_backward(s, eps, p.ratios, var_ratios, p.offset, p.var, (const A*)m.weight, p.mixed_offset, d_scale,
                                d_shift, d_ratios, d_var_ratios, d_offset, d_var, (A*)m.d_weight, (A*)m.d_bias);
        if (!m.var_logits)
            for (int64_t i = 0; i < ratio; ++i) d_ratios[i] += d_var_ratios[i];
    } else {
        mix_outputs_backward(s, m.affine_rows, eps, p.ratios, p.offset, p.var, (const A*)m.weight, d_scale, d_shift, d_ratios,
                             d_offset, d_var, (A*)m.d_weight, (A*)m.d_bias);
    }
    if (m.source == from_logits) {
        same_for_all_backward(m, p.ratios, d_ratios, (A*)m.d_logits);
        if (m.var_logits) same_for_all_backward(m, p.var_ratios, d_var_ratios, (A*)m.d_var_logits);
    } else {
        const A* const gate_input = m.source == from_pooled ? p.stats : p.v;
        gate_backward(gate_of<A>(m), m.samples, gate_input, p.hidden, p.ratios, d_ratios, (A*)m.d_w1, (A*)m.d_b1, (A*)m.d_w2,
                      (A*)m.d_b2, d_inputs);
        if (m.source == from_correlations)
            correlations_backward(s, m.reduced, eps, p.offset, p.var, (const A*)m.kernel, p.z, d_inputs, d_offset, d_var,
                                  (A*)m.d_kernel);
    }
    statistics_backward(s, p.offset, d_offset, d_var, d_mean, d_cell_var, d_batch);
    if (m.source == from_pooled)
        for (int64_t i = 0; i < cells; ++i) d_mean[i] += d_inputs[i];
    if (m.dx)
        map_cells(m.cells(), (const T*)m.x, (const T*)m.dy, (T*)m.dx,
                  backward_map<A>{{p.stats, cells}, p.scale, d_shift, d_mean, d_cell_var, A(1) / A(m.pixels)});
}

template <class Call> void by_type(int64_t type, Call call) {
    switch (type) {
        case 0: return call(static_cast<float*>(nullptr));
        case 1: return call(static_cast<double*>(nullptr));
        case 2: return call(static_cast<bfloat16*>(nullptr));
#ifdef __FLT16_MAX__
        case 3: return call(static_cast<float16*>(nullptr));
#endif
    }
}

}  // namespace

#define EN_TYPE(t)                              \
    using T = std::remove_pointer_t<decltype(t)>; \
    using A [[maybe_unused]] = accumulator<T>

extern "C" {

int en_has_float16() {
#ifdef __FLT16_MAX__
    return 1;
#else
    return 0;
#endif
}

// What Python's structures, matched by position, have to be as long as.
int en_shape_size() { return sizeof(shape); }
int en_plan_size() { return sizeof(plan); }

int64_t en_saved_size(const plan* m) { return saved_parts<char>(*m, nullptr).end - (char*)nullptr; }

void en_forward(int64_t type, const plan* m) {
    by_type(type, [&](auto* t) { EN_TYPE(t); forward<T>(*m); });
}

void en_backward(int64_t type, const plan* m) {
    by_type(type, [&](auto* t) { EN_TYPE(t); backward<T>(*m); });
}

void en_moments(int64_t type, const shape* s, const void* x, void* stats) {
    by_type(type, [&](auto* t) { EN_TYPE(t); moments(*s, (const T*)x, (A*)stats); });
}

void en_affine(int64_t type, const shape* s, const void* x, void* stats_, const void* scale, const void* shift, void* y) {
    by_type(type, [&](auto* t) {
        EN_TYPE(t);
        const forward_map<A> map{{(A*)stats_, s->cells()}, (const A*)scale, (const A*)shift};
        map_cells(*s, (const T*)x, (const T*)x, (T*)y, map);
    });
}

void en_gradient_sums(int64_t type, const shape* s, const void* dy, const void* x, void* stats, void* sums) {
    by_type(type, [&](auto* t) { EN_TYPE(t); gradient_sums(*s, (const T*)dy, (const T*)x, (A*)stats, (A*)sums); });
}

void en_input_gradient(int64_t type, const shape* s, const void* dy, const void* x, void* stats_, const void* sum_dy,
                       const void* scale, const void* d_mean, const void* d_var, void* dx) {
    by_type(type, [&](auto* t) {
        EN_TYPE(t);
        const backward_map<A> map{{(A*)stats_, s->cells()}, (const A*)scale, (const A*)sum_dy, (const A*)d_mean, (const A*)d_var,
                                  A(1) / A(s->pixels)};
        map_cells(*s, (const T*)x, (const T*)dy, (T*)dx, map);
    });
}
}
