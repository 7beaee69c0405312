// What en/norm calls on a CPU, as torch's operators: the four passes by themselves, and a layer (IN, LN, GN, SN, EN)
// whole, forward and backward.
//
// One call each way for a whole layer, because on small inputs the time goes into calls: some hundred operations of
// torch on (N, K, C) take longer than the four passes over (N, C, H, W). The operators use torch's stable ABI, which
// does not change from one version of torch to the next; ../cpu.py compiles and loads them.

#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

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
    void *x, *y, *dy, *dx;  // (N, C, H, W)
    void* saved;            // what forward leaves for backward

    shape cells() const { return {samples, channels, pixels, threads, channels_last}; }
    sizes small() const {
        sizes s{samples, kinds, channels, threads, {}, {}};
        std::copy(kind, kind + 4, s.kind);
        std::copy(groups, groups + 4, s.groups);
        return s;
    }
    int64_t gate_inputs() const { return kinds * kinds; }
};

// The parts of `saved`, one after the other.
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
    return {m.gate_inputs(), m.hidden, m.kinds, m.activation, m.absent, A(m.gate_scale), (A*)m.w1, (A*)m.b1, (A*)m.w2,
        (A*)m.b2};
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
template <class A>
void update_running(int64_t channels, int64_t values, double share_, const A* batch, A* mean, A* var) {
    const A share = A(share_), count = A(values), unbiased = count / std::max(count - 1, A(1));
    for (int64_t c = 0; c < channels; ++c) {
        mean[c] += share * (batch[c] - mean[c]);
        var[c] += share * (batch[channels + c] * unbiased - var[c]);
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
    if (m.source == from_logits) {
        same_for_all(m, (const A*)m.logits, p.ratios);
        if (m.var_logits) same_for_all(m, (const A*)m.var_logits, p.var_ratios);
    } else {
        correlations(s, m.reduced, eps, p.offset, p.var, (const A*)m.kernel, p.z, p.v);
        gate_forward(gate_of<A>(m), m.samples, m.threads, p.v, p.hidden, p.ratios);
    }
    const A* const var_ratios = m.var_logits ? p.var_ratios : p.ratios;
    if (m.statistics) {
        mix_statistics(s, eps, p.ratios, var_ratios, p.offset, p.var, (const A*)m.weight, (const A*)m.bias, p.scale,
            p.shift, p.mixed_offset);
    } else {
        mix_outputs(
            s, m.affine_rows, eps, p.ratios, p.offset, p.var, (const A*)m.weight, (const A*)m.bias, p.scale, p.shift);
    }
    map_cells(m.cells(), (const T*)m.x, (const T*)m.x, (T*)m.y, forward_map<A>{{p.stats, cells}, p.scale, p.shift});
}

template <class T> void backward(const plan& m) {
    using A = accumulator<T>;
    const saved_parts<A> p(m, (A*)m.saved);
    const sizes s = m.small();
    const int64_t cells = m.samples * m.channels, ratio = m.samples * m.kinds, inputs = m.gate_inputs();
    const A eps = A(m.eps);
    const std::unique_ptr<A[]> scratch(
        new A[(4 + 2 * m.kinds) * cells + 2 * ratio + 2 * m.channels + m.samples * inputs]);
    A *const d_shift = scratch.get(), *const d_scale = d_shift + cells, *const d_mean = d_scale + cells;
    A *const d_cell_var = d_mean + cells, *const d_offset = d_cell_var + cells,
             *const d_var = d_offset + m.kinds * cells;
    A *const d_ratios = d_var + m.kinds * cells, *const d_var_ratios = d_ratios + ratio;
    A *const d_batch = d_var_ratios + ratio, *const d_inputs = d_batch + 2 * m.channels;

    gradient_sums(m.cells(), (const T*)m.dy, (const T*)m.x, p.stats, d_shift);
    const A* const var_ratios = m.var_logits ? p.var_ratios : p.ratios;
    if (m.statistics) {
        mix_statistics_backward(s, eps, p.ratios, var_ratios, p.offset, p.var, (const A*)m.weight, p.mixed_offset,
            d_scale, d_shift, d_ratios, d_var_ratios, d_offset, d_var, (A*)m.d_weight, (A*)m.d_bias);
        if (!m.var_logits)
            for (int64_t i = 0; i < ratio; ++i) d_ratios[i] += d_var_ratios[i];
    } else {
        mix_outputs_backward(s, m.affine_rows, eps, p.ratios, p.offset, p.var, (const A*)m.weight, d_scale, d_shift,
            d_ratios, d_offset, d_var, (A*)m.d_weight, (A*)m.d_bias);
    }
    if (m.source == from_logits) {
        same_for_all_backward(m, p.ratios, d_ratios, (A*)m.d_logits);
        if (m.var_logits) same_for_all_backward(m, p.var_ratios, d_var_ratios, (A*)m.d_var_logits);
    } else {
        gate_backward(gate_of<A>(m), m.samples, p.v, p.hidden, p.ratios, d_ratios, (A*)m.d_w1, (A*)m.d_b1,
            (A*)m.d_w2, (A*)m.d_b2, d_inputs);
        correlations_backward(
            s, m.reduced, eps, p.offset, p.var, (const A*)m.kernel, p.z, d_inputs, d_offset, d_var, (A*)m.d_kernel);
    }
    statistics_backward(s, p.offset, d_offset, d_var, d_mean, d_cell_var, d_batch);
    if (m.dx)
        map_cells(m.cells(), (const T*)m.x, (const T*)m.dy, (T*)m.dx,
            backward_map<A>{{p.stats, cells}, p.scale, d_shift, d_mean, d_cell_var, A(1) / A(m.pixels)});
}

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
    shape s{size[0], size[1], size[2] * size[3], torch::stable::get_num_threads(), !x.is_contiguous()};
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

using slots = std::vector<std::pair<void* plan::*, int64_t>>;

// Which member each parameter is for, and how many values it has.
slots slots_of(const plan& m, bool gradients, size_t count) {
    const int64_t C = m.channels, K = m.kinds, I = m.gate_inputs(), H = m.hidden, rows = m.affine_rows;
    const bool g = gradients;
    slots all{{g ? &plan::d_weight : &plan::weight, rows * C}, {g ? &plan::d_bias : &plan::bias, rows * C}};
    if (m.source == from_logits) {
        all.push_back({g ? &plan::d_logits : &plan::logits, K});
        if (count > 3) all.push_back({g ? &plan::d_var_logits : &plan::var_logits, K});
    } else {
        all.push_back({g ? &plan::d_kernel : &plan::kernel, C});
        all.push_back({g ? &plan::d_w1 : &plan::w1, H * I});
        all.push_back({g ? &plan::d_b1 : &plan::b1, H});
        all.push_back({g ? &plan::d_w2 : &plan::w2, K * H});
        all.push_back({g ? &plan::d_b2 : &plan::b2, K});
    }
    STD_TORCH_CHECK(all.size() == count, "en_norm: ", count, " parameters: expected ", all.size());
    return all;
}

void place(plan& m, const char* name, const Tensors& parts, bool gradients, ScalarType type) {
    const slots all = slots_of(m, gradients, parts.size());
    for (size_t i = 0; i < parts.size(); ++i) m.*all[i].first = data_of(name, parts[i], all[i].second, type);
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

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_forward(const Tensor& x, const Tensors& parameters,
    std::optional<Tensor> running_mean, std::optional<Tensor> running_var, const Integers& kinds,
    const Integers& groups, int64_t absent, int64_t source, int64_t reduced, int64_t activation, bool statistics,
    double eps, double gate_scale) {
    plan m = plan_of(x, parameters, {kinds, groups, absent, source, reduced, activation, statistics, eps, gate_scale});
    const ScalarType type = moments_type(x);
    const auto has = [&](int64_t kind) { return std::find(kinds.begin(), kinds.end(), kind) != kinds.end(); };
    if (has(given)) {
        STD_TORCH_CHECK(running_mean && running_var, "en_norm: expected running averages");
        m.running_mean = data_of("running_mean", *running_mean, m.channels, type);
        m.running_var = data_of("running_var", *running_var, m.channels, type);
    }
    const int64_t averaged = has(batch) ? m.channels : 0;
    Tensor y = torch::stable::empty_like(x), saved = torch::stable::new_empty(x, {saved_size(m)}, type);
    Tensor ratios = torch::stable::new_empty(x, {m.samples, m.kinds}, type);
    Tensor moments = torch::stable::new_empty(x, {2, averaged}, type);
    m.y = data_like("y", y, x);
    m.saved = saved.data_ptr();
    by_type(x.scalar_type(), [&](auto* t) {
        using T = std::remove_pointer_t<decltype(t)>;
        using A = accumulator<T>;
        forward<T>(m);
        const saved_parts<A> p(m, (A*)m.saved);
        std::copy(p.ratios, p.ratios + m.samples * m.kinds, (A*)ratios.data_ptr());
        std::copy(p.batch, p.batch + 2 * averaged, (A*)moments.data_ptr());
    });
    return {y, ratios, moments, saved};
}

std::tuple<Tensor, Tensors> layer_backward(const Tensor& dy, const Tensor& x, const Tensor& saved,
    const Tensors& parameters, bool for_input, const Integers& kinds, const Integers& groups, int64_t absent,
    int64_t source, int64_t reduced, int64_t activation, bool statistics, double eps, double gate_scale) {
    plan m = plan_of(x, parameters, {kinds, groups, absent, source, reduced, activation, statistics, eps, gate_scale});
    Tensors grads;
    for (const Tensor& part : parameters) grads.push_back(torch::stable::empty_like(part));
    place(m, "a gradient", grads, true, moments_type(x));
    Tensor dx = for_input ? torch::stable::empty_like(x) : torch::stable::new_empty(x, {0});
    m.dy = data_like("dy", dy, x);
    m.dx = for_input ? data_like("dx", dx, x) : nullptr;
    m.saved = data_of("saved", saved, saved_size(m), moments_type(x));
    by_type(x.scalar_type(), [&](auto* t) { backward<std::remove_pointer_t<decltype(t)>>(m); });
    return {dx, grads};
}

void track(Tensor running_mean, Tensor running_var, const Tensor& batch, int64_t values, double share) {
    const int64_t C = running_mean.numel();
    const ScalarType type = running_mean.scalar_type();
    void *mean = data_of("running_mean", running_mean, C, type), *var = data_of("running_var", running_var, C, type);
    void* moments = data_of("batch", batch, 2 * C, type);
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "en_norm: expected float32 or float64");
    if (type == ScalarType::Float)
        update_running<float>(C, values, share, (float*)moments, (float*)mean, (float*)var);
    else
        update_running<double>(C, values, share, (double*)moments, (double*)mean, (double*)var);
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
    Tensor stats = torch::stable::new_empty(x, {4, p.s.samples, p.s.channels}, p.type);
    by_type(x.scalar_type(), [&](auto* t) {
        EN_TYPE(t);
        moments(p.s, (const T*)x.data_ptr(), (A*)stats.data_ptr());
    });
    return stats;
}

Tensor pass_affine(const Tensor& x, const Tensor& stats_, const Tensor& scale, const Tensor& shift) {
    const pass p(x);
    Tensor y = torch::stable::empty_like(x);
    void* const to = data_like("y", y, x);
    by_type(x.scalar_type(), [&](auto* t) {
        EN_TYPE(t);
        const stats<A> in(p.cells<A>("stats", stats_, 4), p.s.cells());
        const forward_map<A> map{in, p.cells<A>("scale", scale), p.cells<A>("shift", shift)};
        map_cells(p.s, (const T*)x.data_ptr(), (const T*)x.data_ptr(), (T*)to, map);
    });
    return y;
}

Tensor pass_gradient_sums(const Tensor& dy, const Tensor& x, const Tensor& stats) {
    const pass p(x);
    Tensor sums = torch::stable::new_empty(x, {2, p.s.samples, p.s.channels}, p.type);
    const void* const from = data_like("dy", dy, x);
    by_type(x.scalar_type(), [&](auto* t) {
        EN_TYPE(t);
        gradient_sums(p.s, (const T*)from, (const T*)x.data_ptr(), p.cells<A>("stats", stats, 4), (A*)sums.data_ptr());
    });
    return sums;
}

Tensor pass_input_gradient(const Tensor& dy, const Tensor& x, const Tensor& stats_, const Tensor& sum_dy,
    const Tensor& scale, const Tensor& d_mean, const Tensor& d_var) {
    const pass p(x);
    Tensor dx = torch::stable::empty_like(x);
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
        "layer_forward(Tensor x, Tensor[] parameters, Tensor? running_mean, Tensor? running_var, int[] kinds, int[] "
        "groups, "
        "int absent, int source, int reduced, int activation, bool statistics, float eps, float gate_scale) "
        "-> (Tensor y, Tensor ratios, Tensor batch, Tensor saved)");
    m.def(
        "layer_backward(Tensor dy, Tensor x, Tensor saved, Tensor[] parameters, bool for_input, int[] kinds, int[] "
        "groups, "
        "int absent, int source, int reduced, int activation, bool statistics, float eps, float gate_scale) -> (Tensor dx, Tensor[] grads)");
    m.def("track(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor batch, int values, float share) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(en_norm, CPU, m) {
    m.impl("moments", TORCH_BOX(&pass_moments));
    m.impl("affine", TORCH_BOX(&pass_affine));
    m.impl("gradient_sums", TORCH_BOX(&pass_gradient_sums));
    m.impl("input_gradient", TORCH_BOX(&pass_input_gradient));
    m.impl("layer_forward", TORCH_BOX(&layer_forward));
    m.impl("layer_backward", TORCH_BOX(&layer_backward));
    m.impl("track", TORCH_BOX(&track));
}
