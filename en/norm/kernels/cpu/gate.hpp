// Where the ratios of a normalizer come from, forward and backward: softmax, and EN's gate of two linear layers.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

enum activation : int64_t { tanh_activation, relu_activation };

// Linear(inputs, hidden), activation times scale, Linear(hidden, outputs); weights as torch's, (out, in).
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

// x (N, inputs) -> hidden (N, hidden), after the activation, unscaled, and ratios (N, outputs).
template <class A>
void gate_forward(const gate<A>& g, int64_t samples, int64_t threads, const A* x, A* hidden, A* ratios) {
    const std::vector<A> first = transposed(g.w1, g.hidden, g.inputs);  // (inputs, hidden): vectors run along hidden
    over(samples, samples * g.hidden * (g.inputs + 16), threads, [&](int64_t n) {
        A *h = hidden + n * g.hidden, *r = ratios + n * g.outputs;
        const int64_t units = g.hidden;
        std::copy(g.b1, g.b1 + units, h);
        for (int64_t i = 0; i < g.inputs; ++i) {
            const A value = x[n * g.inputs + i], *row = first.data() + i * units;
#pragma omp simd
            for (int64_t j = 0; j < units; ++j) h[j] += row[j] * value;
        }
        if (g.activation == tanh_activation) {
            for (int64_t j = 0; j < units; ++j) h[j] = std::tanh(h[j]);
        } else {
            for (int64_t j = 0; j < units; ++j) h[j] = std::max(h[j], A(0));
        }
        for (int64_t k = 0; k < g.outputs; ++k) {
            A sum = 0;
            const A* row = g.w2 + k * units;
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < units; ++j) sum += row[j] * h[j];
            r[k] = g.scale * sum + g.b2[k];
        }
        softmax(g.outputs, r, g.absent);
    });
}

// Gradients of the weights, and d_x, from d_ratios, which is overwritten.
template <class A> void gate_backward(const gate<A>& g, int64_t samples, const A* x, const A* hidden, const A* ratios,
    A* d_ratios, A* d_w1, A* d_b1, A* d_w2, A* d_b2, A* d_x) {
    const int64_t units = g.hidden;
    const std::vector<A> first = transposed(g.w1, units, g.inputs);
    std::vector<A> d_first(g.inputs * units, A(0)), d_hidden(units);
    std::fill(d_b1, d_b1 + units, A(0));
    std::fill(d_w2, d_w2 + g.outputs * units, A(0));
    std::fill(d_b2, d_b2 + g.outputs, A(0));
    A* const dh = d_hidden.data();
    for (int64_t n = 0; n < samples; ++n) {
        const A* h = hidden + n * units;
        A* logits = d_ratios + n * g.outputs;
        softmax_backward(g.outputs, ratios + n * g.outputs, logits);
        std::fill(dh, dh + units, A(0));
        for (int64_t k = 0; k < g.outputs; ++k) {
            const A d = g.scale * logits[k], *row = g.w2 + k * units;
            A* d_row = d_w2 + k * units;
            d_b2[k] += logits[k];
#pragma omp simd
            for (int64_t j = 0; j < units; ++j) {
                d_row[j] += d * h[j];
                dh[j] += d * row[j];
            }
        }
        if (g.activation == tanh_activation) {
#pragma omp simd
            for (int64_t j = 0; j < units; ++j) dh[j] *= 1 - h[j] * h[j];
        } else {
#pragma omp simd
            for (int64_t j = 0; j < units; ++j) dh[j] = h[j] > 0 ? dh[j] : A(0);
        }
#pragma omp simd
        for (int64_t j = 0; j < units; ++j) d_b1[j] += dh[j];
        for (int64_t i = 0; i < g.inputs; ++i) {
            const A value = x[n * g.inputs + i], *row = first.data() + i * units;
            A* d_row = d_first.data() + i * units;
            A sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < units; ++j) {
                d_row[j] += dh[j] * value;
                sum += dh[j] * row[j];
            }
            d_x[n * g.inputs + i] = sum;
        }
    }
    const std::vector<A> back = transposed(d_first.data(), g.inputs, units);
    std::copy(back.begin(), back.end(), d_w1);
}

}  // namespace
