// Where the ratios of a normalizer come from, forward and backward: softmax, and EN's gate of two linear layers.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "passes.hpp"

namespace {

enum activation : int64_t { tanh_activation, relu_activation };

// ratios = softmax(scale * w2 activation(w1 x + b1) + b2); weights as torch's, (out, in).
template <class A> struct gate {
    int64_t inputs, hidden, outputs, activation, absent;
    A scale;
    const A *w1, *b1, *w2, *b2;
};

// In place; the value at `absent`, where that is one of them, becomes 0.
template <class A> void softmax(int64_t k, A* values, int64_t absent) {
    if (absent >= 0) values[absent] = -std::numeric_limits<A>::infinity();
    const A top = *std::max_element(values, values + k);
    A sum = 0;
    for (int64_t i = 0; i < k; ++i) sum += values[i] = std::exp(values[i] - top);
    for (int64_t i = 0; i < k; ++i) values[i] /= sum;
}

// In place: the gradient of softmax's input from that of its output.
template <class A> void softmax_backward(int64_t k, const A* ratios, A* grads) {
    A dot = 0;
    for (int64_t i = 0; i < k; ++i) dot += ratios[i] * grads[i];
    for (int64_t i = 0; i < k; ++i) grads[i] = ratios[i] * (grads[i] - dot);
}

template <class A> std::vector<A> transposed(const A* matrix, int64_t rows, int64_t columns) {
    std::vector<A> out(rows * columns);
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) out[j * rows + i] = matrix[i * columns + j];
    return out;
}

// exp of doubles from 0 to 40: 2^k * e^r with k = round(x / ln 2), r = x - k ln 2, and e^r by its series to r^12, which
// leaves 1e-16 of it.
inline void exponential(vec<double>& x) {
    const double shifter = 0x1.8p52;  // added and taken away, it rounds to a whole number, which its last bits hold
    const vec<double> shifted = x * 1.4426950408889634 + shifter, k = shifted - shifter;
    const vec<double> r = (x - k * 0x1.62e42fefa3800p-1) - k * 0x1.ef35793c76730p-45;
    vec<double> sum = r * (1.0 / 479001600) + 1.0 / 39916800;
    for (const double coefficient : {1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120,
             1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0})
        sum = sum * r + coefficient;
    vec<int64_t> bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 1023) << 52;
    vec<double> power;
    std::memcpy(&power, &bits, sizeof power);
    x = sum * power;
}

// tanh of as many floats as a vector has doubles, computed as doubles and rounded once: 1 - 2 / (e^2|x| + 1), or
// x - x^3 / 3 where |x| is so small that this would cancel.
inline void tanh_of_vector(float* values) {
    vector_of<float, kBytes / 2>::type narrow;
    std::memcpy(&narrow, values, sizeof narrow);
    const vec<double> x = __builtin_convertvector(narrow, vec<double>), zero{}, size = x < zero ? -x : x;
    const vec<double> most = zero + 20;
    vec<double> power = 2 * (size > most ? most : size);  // NaN stays: no comparison is true of it
    exponential(power);
    const vec<double> large = 1 - 2 / (power + 1), small = size - size * size * size * (1.0 / 3);
    const vec<double> found = size < zero + 1e-4 ? small : large, y = x < zero ? -found : found;
    narrow = __builtin_convertvector(y, vector_of<float, kBytes / 2>::type);
    std::memcpy(values, &narrow, sizeof narrow);
}

inline void tanh_of(int64_t count, double* values) {
    for (int64_t j = 0; j < count; ++j) values[j] = std::tanh(values[j]);
}

// The same bits whatever the C library's tanhf is, and several at a time.
inline void tanh_of(int64_t count, float* values) {
    constexpr int64_t W = width<double>;
    int64_t j = 0;
    for (; j + W <= count; j += W) tanh_of_vector(values + j);
    if (j == count) return;
    float last[W] = {};
    std::copy(values + j, values + count, last);
    tanh_of_vector(last);
    std::copy(last, last + count - j, values + j);
}

// The activation, in place.
template <class A> void activate(int64_t activation, int64_t count, A* values) {
    if (activation == tanh_activation) {
        tanh_of(count, values);
    } else {
        for (int64_t j = 0; j < count; ++j) values[j] = std::max(values[j], A(0));
    }
}

// A gate whose first matrix is transposed, (inputs, hidden), so that vectors run along the hidden units.
template <class A> struct wide_gate : gate<A> {
    std::vector<A> first;
    explicit wide_gate(const gate<A>& g) : gate<A>(g), first(transposed(g.w1, g.hidden, g.inputs)) {}

    // h = activation(w1 x + b1), of one sample.
    void units_of(const A* x, A* h) const {
        const int64_t units = this->hidden;
        std::copy(this->b1, this->b1 + units, h);
        for (int64_t i = 0; i < this->inputs; ++i) {
            const A value = x[i], *const row = first.data() + i * units;
#pragma omp simd
            for (int64_t j = 0; j < units; ++j) h[j] += row[j] * value;
        }
        activate(this->activation, units, h);
    }

    // ratios = softmax(scale * w2 h + b2), of one sample.
    void ratios_of(const A* h, A* ratios) const {
        const int64_t units = this->hidden;
        for (int64_t k = 0; k < this->outputs; ++k) {
            A sum = 0;
            const A* const row = this->w2 + k * units;
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < units; ++j) sum += row[j] * h[j];
            ratios[k] = this->scale * sum + this->b2[k];
        }
        softmax(this->outputs, ratios, this->absent);
    }

    // Of one sample, from d_ratios: in place the gradient of the logits, d_h (hidden) of the units before their
    // activation, and d_x = w1^T d_h.
    void backward(const A* h, const A* ratios, A* d_ratios, A* d_h, A* d_x) const {
        const int64_t units = this->hidden;
        softmax_backward(this->outputs, ratios, d_ratios);
        std::fill(d_h, d_h + units, A(0));
        for (int64_t k = 0; k < this->outputs; ++k) {
            const A d = this->scale * d_ratios[k], *const row = this->w2 + k * units;
#pragma omp simd
            for (int64_t j = 0; j < units; ++j) d_h[j] += d * row[j];
        }
        if (this->activation == tanh_activation) {
#pragma omp simd
            for (int64_t j = 0; j < units; ++j) d_h[j] *= 1 - h[j] * h[j];
        } else {
#pragma omp simd
            for (int64_t j = 0; j < units; ++j) d_h[j] = h[j] > 0 ? d_h[j] : A(0);
        }
        for (int64_t i = 0; i < this->inputs; ++i) {
            const A* const row = first.data() + i * units;
            A sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < units; ++j) sum += d_h[j] * row[j];
            d_x[i] = sum;
        }
    }

    // Gradients of the weights of the hidden units from .. to, summed over samples: d_w2 = scale d_logits h^T,
    // d_b1 = d_h, d_w1 = d_h x^T.
    void weight_gradients(int64_t samples, int64_t from, int64_t to, const A* x, const A* h, const A* d_logits,
        const A* d_h, A* d_w1, A* d_b1, A* d_w2) const {
        const int64_t units = this->hidden, inputs = this->inputs, count = to - from;
        std::vector<A> rows(inputs * count, A(0));
        std::fill(d_b1 + from, d_b1 + to, A(0));
        for (int64_t k = 0; k < this->outputs; ++k) std::fill(d_w2 + k * units + from, d_w2 + k * units + to, A(0));
        for (int64_t n = 0; n < samples; ++n) {
            const A *const hn = h + n * units, *const dn = d_h + n * units;
            for (int64_t k = 0; k < this->outputs; ++k) {
                const A d = this->scale * d_logits[n * this->outputs + k];
                A* const row = d_w2 + k * units;
#pragma omp simd
                for (int64_t j = from; j < to; ++j) row[j] += d * hn[j];
            }
#pragma omp simd
            for (int64_t j = from; j < to; ++j) d_b1[j] += dn[j];
            for (int64_t i = 0; i < inputs; ++i) {
                const A value = x[n * inputs + i];
                A* const row = rows.data() + i * count - from;
#pragma omp simd
                for (int64_t j = from; j < to; ++j) row[j] += dn[j] * value;
            }
        }
        for (int64_t i = 0; i < inputs; ++i)
            for (int64_t j = from; j < to; ++j) d_w1[j * inputs + i] = rows[i * count + j - from];
    }
};

}  // namespace
