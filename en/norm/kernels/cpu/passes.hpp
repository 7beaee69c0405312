// The four passes over (N, C, H, W) that normalization needs, for a CPU: see ../passes.py for them in torch's
// operations.
//
// A cell is one channel of one sample, P = H * W values. NCHW keeps a cell's values side by side, so vectors run along
// pixels; channels_last keeps a pixel's channels side by side, so vectors run along channels. Sums are taken about a
// centre near the data, the mean of a cell's first pixels: with those a share f of the cell, cancellation in
// E[d^2] - E[d]^2 costs at most a factor 1/f. Partial sums are flushed often, which keeps float32 sums accurate.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

struct bfloat16 {
    uint16_t bits;
};
#ifdef __FLT16_MAX__  // compilers without it leave float16 to torch's operations
using float16 = _Float16;
#endif

template <class T> using accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Vectors are as wide as the processor's, in bytes: gcc takes wider ones apart through memory.
#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
template <class T, int bytes = kBytes> struct vector_of {
    typedef T type __attribute__((vector_size(bytes)));
};
template <class A> using vec = typename vector_of<A>::type;
template <class A> constexpr int64_t width = kBytes / sizeof(A);
// Values of a row that are summed apart: as many for every processor, so that the order of sums is the same.
template <class A> constexpr int64_t strand = 64 / sizeof(A);

constexpr int kBlock = 4;        // vectors of channels side by side whose sums fit the registers
constexpr int kMapBlock = 2;     // of the same, whose factors do
constexpr int64_t kFlush = 256;  // strands, or pixels, summed before they are added to the total
constexpr int64_t kLanes = 4;    // strands in flight: hides the latency of an addition

struct shape {
    int64_t samples, channels, pixels, threads;
    bool channels_last;
    int64_t cells() const { return samples * channels; }
};

// ---- loads and stores: values of type T as accumulators ----

inline float value(float x) { return x; }
inline double value(double x) { return x; }
#ifdef __FLT16_MAX__
inline float value(float16 x) { return static_cast<float>(x); }
inline void put(float16* to, float x) { *to = static_cast<float16>(x); }
#endif
inline float value(bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}

inline void put(float* to, float x) { *to = x; }
inline void put(double* to, double x) { *to = x; }
inline void put(bfloat16* to, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
    to->bits = x != x ? 0x7fc0 : static_cast<uint16_t>(rounded);
}

template <class T> inline vec<accumulator<T>> load(const T* from) {
    using A = accumulator<T>;
    vec<A> out;
    if constexpr (std::is_same_v<T, A>) {
        std::memcpy(&out, from, sizeof out);
    } else if constexpr (std::is_same_v<T, bfloat16>) {
        using narrow = typename vector_of<uint16_t, kBytes / 2>::type;
        using wide = vec<uint32_t>;
        narrow half;
        std::memcpy(&half, from, sizeof half);
        const wide bits = __builtin_convertvector(half, wide) << 16;
        std::memcpy(&out, &bits, sizeof out);
    } else {
        typename vector_of<T, kBytes / 2>::type half;
        std::memcpy(&half, from, sizeof half);
        out = __builtin_convertvector(half, vec<A>);
    }
    return out;
}

template <class T> inline void store(T* to, vec<accumulator<T>> x) {
    using A = accumulator<T>;
    if constexpr (std::is_same_v<T, A>) {
        std::memcpy(to, &x, sizeof x);
    } else if constexpr (std::is_same_v<T, bfloat16>) {
        using narrow = typename vector_of<uint16_t, kBytes / 2>::type;
        using wide = vec<uint32_t>;
        wide bits;
        std::memcpy(&bits, &x, sizeof bits);
        wide rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        const wide nan = (wide)(x != x);
        rounded = (rounded & ~nan) | (nan & 0x7fc0);
        const narrow half = __builtin_convertvector(rounded, narrow);
        std::memcpy(to, &half, sizeof half);
    } else {
        using narrow = typename vector_of<T, kBytes / 2>::type;
        const narrow half = __builtin_convertvector(x, narrow);
        std::memcpy(to, &half, sizeof half);
    }
}

// A scalar or a vector of accumulators.
template <class V, class A> inline V get(const A* from) {
    V out;
    std::memcpy(&out, from, sizeof out);
    return out;
}

// ---- sums over cells: S of them at once, `terms` saying which ----
//
// terms(out, i) puts the S summands of the vector (or, for scalars, the value) at offset i into out.

// One cell of NCHW: values 0 .. pixels - 1. A strand is taken a vector at a time, each through many strands: its sums fit
// the registers.
template <int S, class A, class Vectors, class Scalars>
inline void sum_row(int64_t pixels, A* out, Vectors vectors, Scalars scalars) {
    constexpr int64_t W = strand<A>, V = width<A>;
    vec<A> sum[S][W / V] = {};
    const int64_t whole = pixels - pixels % W;
    for (int64_t from = 0; from < whole; from += kFlush * kLanes * W) {
        const int64_t stop = std::min(whole, from + kFlush * kLanes * W);
        for (int64_t v = 0; v < W / V; ++v) {
            vec<A> part[S][kLanes] = {};
            int64_t i = from;
            for (; i + kLanes * W <= stop; i += kLanes * W)
                for (int lane = 0; lane < kLanes; ++lane) {
                    vec<A> term[S];
                    vectors(term, i + lane * W + v * V);
                    for (int s = 0; s < S; ++s) part[s][lane] += term[s];
                }
            for (; i < stop; i += W) {
                vec<A> term[S];
                vectors(term, i + v * V);
                for (int s = 0; s < S; ++s) part[s][0] += term[s];
            }
            for (int s = 0; s < S; ++s) sum[s][v] += (part[s][0] + part[s][1]) + (part[s][2] + part[s][3]);
        }
    }
    A rest[S] = {};
    for (int64_t i = whole; i < pixels; ++i) {
        A term[S];
        scalars(term, i);
        for (int s = 0; s < S; ++s) rest[s] += term[s];
    }
    for (int s = 0; s < S; ++s) {
        A total = 0;
        for (int64_t i = 0; i < W; ++i) total += sum[s][i / V][i % V];
        out[s] = total + rest[s];
    }
}

// Where the B vectors of a block begin, in channels from the block's first one: the last may overlap the one before.
template <int B> struct places {
    int64_t at[B];
};

// B vectors of channels of channels_last over all pixels; terms(out, offset, b) for the b-th vector of the pixel at
// offset.
template <int S, int B, class A, class Terms>
inline void sum_columns(int64_t pixels, int64_t channels, const places<B>& block, vec<A> (&sum)[S][B], Terms terms) {
    for (int s = 0; s < S; ++s)
        for (int b = 0; b < B; ++b) sum[s][b] = vec<A>{};
    for (int64_t p = 0; p < pixels;) {
        vec<A> part[S][B] = {};
        for (const int64_t stop = std::min(pixels, p + kFlush); p < stop; ++p)
            for (int b = 0; b < B; ++b) {
                vec<A> term[S];
                terms(term, p * channels + block.at[b], b);
                for (int s = 0; s < S; ++s) part[s][b] += term[s];
            }
        for (int s = 0; s < S; ++s)
            for (int b = 0; b < B; ++b) sum[s][b] += part[s][b];
    }
}

inline int64_t first_pixels(int64_t pixels) { return std::max(std::min<int64_t>(pixels, 256), pixels / 16); }

// ---- moments: stats (4, N, C) = mean, variance, centre, mean - centre ----

template <class A> struct stats {
    A *mean, *var, *centre, *rest;
    stats(A* base, int64_t cells) : stats(base, base + cells, base + 2 * cells, base + 3 * cells) {}
    stats(A* mean_, A* var_, A* centre_, A* rest_) : mean(mean_), var(var_), centre(centre_), rest(rest_) {}
    void set(int64_t cell, A c, A sum, A squares, A pixels) {
        const A lo = sum / pixels;
        centre[cell] = c;
        rest[cell] = lo;
        mean[cell] = c + lo;
        var[cell] = std::max(squares / pixels - lo * lo, A(0));
        if (squares != squares) var[cell] = squares;
    }
    // The same for a vector of cells.
    void set(int64_t cell, vec<A> c, vec<A> sum, vec<A> squares, A pixels) {
        const vec<A> lo = sum / pixels, spread = squares / pixels - lo * lo, zero{};
        store(centre + cell, c);
        store(rest + cell, lo);
        store(mean + cell, vec<A>(c + lo));
        store(var + cell, vec<A>(spread < zero ? zero : spread));  // NaN stays
    }
};

template <class T> void moments_row(const T* x, int64_t pixels, stats<accumulator<T>> out, int64_t cell) {
    using A = accumulator<T>;
    const int64_t first = first_pixels(pixels);
    A start[1];
    sum_row<1, A>(
        first, start, [&](vec<A>* t, int64_t i) { t[0] = load(x + i); }, [&](A* t, int64_t i) { t[0] = value(x[i]); });
    const A centre = start[0] / A(first);
    A sums[2];
    sum_row<2, A>(
        pixels, sums,
        [&](vec<A>* t, int64_t i) {
            const vec<A> d = load(x + i) - centre;
            t[0] = d;
            t[1] = d * d;
        },
        [&](A* t, int64_t i) {
            const A d = value(x[i]) - centre;
            t[0] = d;
            t[1] = d * d;
        });
    out.set(cell, centre, sums[0], sums[1], A(pixels));
}

template <int B, class T>
void moments_columns(const T* x, int64_t pixels, int64_t channels, const places<B>& block, stats<accumulator<T>> out,
    int64_t cell) {
    using A = accumulator<T>;
    const int64_t first = first_pixels(pixels);
    vec<A> start[1][B];
    sum_columns<1, B, A>(first, channels, block, start, [&](vec<A>* t, int64_t i, int) { t[0] = load(x + i); });
    vec<A> centre[B];
    for (int b = 0; b < B; ++b) centre[b] = start[0][b] / A(first);
    vec<A> sums[2][B];
    sum_columns<2, B, A>(pixels, channels, block, sums, [&](vec<A>* t, int64_t i, int b) {
        const vec<A> d = load(x + i) - centre[b];
        t[0] = d;
        t[1] = d * d;
    });
    for (int b = 0; b < B; ++b) out.set(cell + block.at[b], centre[b], sums[0][b], sums[1][b], A(pixels));
}

// ---- sums for the backward pass: out (2, N, C) = sum dY, sum dY * (X - mean) ----

template <class A> struct sums {
    A *plain, *dot;
    sums(A* plain_, A* dot_) : plain(plain_), dot(dot_) {}
};

template <class T> void gradient_row(
    const T* dy, const T* x, int64_t pixels, stats<accumulator<T>> in, sums<accumulator<T>> out, int64_t cell) {
    using A = accumulator<T>;
    const A centre = in.centre[cell];
    A got[2];
    sum_row<2, A>(
        pixels, got,
        [&](vec<A>* t, int64_t i) {
            t[0] = load(dy + i);
            t[1] = t[0] * (load(x + i) - centre);
        },
        [&](A* t, int64_t i) {
            t[0] = value(dy[i]);
            t[1] = t[0] * (value(x[i]) - centre);
        });
    out.plain[cell] = got[0];
    out.dot[cell] = got[1] - in.rest[cell] * got[0];
}

template <int B, class T> void gradient_columns(const T* dy, const T* x, int64_t pixels, int64_t channels,
    const places<B>& block, stats<accumulator<T>> in, sums<accumulator<T>> out, int64_t cell) {
    using A = accumulator<T>;
    vec<A> centre[B];
    for (int b = 0; b < B; ++b) centre[b] = load(in.centre + cell + block.at[b]);
    vec<A> got[2][B];
    sum_columns<2, B, A>(pixels, channels, block, got, [&](vec<A>* t, int64_t i, int b) {
        t[0] = load(dy + i);
        t[1] = t[0] * (load(x + i) - centre[b]);
    });
    for (int b = 0; b < B; ++b) {
        const int64_t at = cell + block.at[b];
        store(out.plain + at, got[0][b]);
        store(out.dot + at, vec<A>(got[1][b] - load(in.rest + at) * got[0][b]));
    }
}

// ---- elementwise passes: out = slope * (X - centre) + [scale * dY] + offset ----

// Y = scale * (X - mean) + shift.
template <class A> struct forward_map {
    stats<A> in;
    const A *scale, *shift;
    static constexpr bool backward = false;
    template <class V> void at(V& slope, V& offset, V&, V& centre, int64_t i) const {
        slope = get<V>(scale + i);
        centre = get<V>(in.centre + i);
        offset = get<V>(shift + i) - slope * get<V>(in.rest + i);
    }
};

// dX = scale * (dY - mean dY) + (d_mean + 2 * d_var * (X - mean)) / P.
template <class A> struct backward_map {
    stats<A> in;
    const A *scale, *sum_dy, *d_mean, *d_var;
    A share;
    static constexpr bool backward = true;
    template <class V> void at(V& slope, V& offset, V& factor, V& centre, int64_t i) const {
        slope = 2 * share * get<V>(d_var + i);
        factor = get<V>(scale + i);
        centre = get<V>(in.centre + i);
        offset = share * (get<V>(d_mean + i) - factor * get<V>(sum_dy + i)) - slope * get<V>(in.rest + i);
    }
};

template <class Map, class T>
void map_row(const T* x, const T* dy, T* out, int64_t pixels, const Map& map, int64_t cell) {
    using A = accumulator<T>;
    A slope, offset, factor = 0, centre;
    map.at(slope, offset, factor, centre, cell);
    int64_t i = 0;
    for (; i + width<A> <= pixels; i += width<A>) {
        vec<A> y = (load(x + i) - centre) * slope + offset;
        if constexpr (Map::backward) y += load(dy + i) * factor;
        store(out + i, y);
    }
    for (; i < pixels; ++i) {
        A y = (value(x[i]) - centre) * slope + offset;
        if constexpr (Map::backward) y += value(dy[i]) * factor;
        put(out + i, y);
    }
}

// B vectors of channels over all pixels, factors in registers.
template <int B, class Map, class T>
void map_block(const T* x, const T* dy, T* out, int64_t pixels, int64_t channels, const places<B>& block,
    const Map& map, int64_t cell) {
    using A = accumulator<T>;
    vec<A> slope[B], offset[B], factor[B], centre[B];
    for (int b = 0; b < B; ++b) map.at(slope[b], offset[b], factor[b], centre[b], cell + block.at[b]);
    for (int64_t p = 0; p < pixels; ++p)
        for (int b = 0; b < B; ++b) {
            const int64_t i = p * channels + block.at[b];
            vec<A> y = (load(x + i) - centre[b]) * slope[b] + offset[b];
            if constexpr (Map::backward) y += load(dy + i) * factor[b];
            store(out + i, y);
        }
}

// use(block) for every block of B vectors of the channels from .. channels, at least a vector in all; of fewer vectors
// for the last. Vectors overlap rather than going beyond the channels.
template <int B, class A, class Use> void each_block(int64_t channels, Use use, int64_t from = 0) {
    constexpr int64_t W = width<A>;
    for (; channels - from > B / 2 * W; from += B * W) {
        places<B> block;
        for (int b = 0; b < B; ++b) block.at[b] = std::min(from + b * W, channels - W);
        use(block);
    }
    if constexpr (B > 1) each_block<B / 2, A>(channels, use, from);
}

// channels_last in tiles of pixels that fit the second cache: all channels of a tile before the next one.
template <class Map, class T>
void map_columns(const T* x, const T* dy, T* out, int64_t pixels, int64_t channels, const Map& map, int64_t cell) {
    using A = accumulator<T>;
    const int64_t tile = std::max<int64_t>(8, 65536 / channels);
    for (int64_t p = 0; p < pixels; p += tile) {
        const int64_t count = std::min(tile, pixels - p), base = p * channels;
        const T* const dy_tile = Map::backward ? dy + base : dy;
        if (channels >= width<A>) {
            each_block<kMapBlock, A>(channels, [&](const auto& block) {
                map_block(x + base, dy_tile, out + base, count, channels, block, map, cell);
            });
            continue;
        }
        for (int64_t c = 0; c < channels; ++c) {
            A slope, offset, factor = 0, centre;
            map.at(slope, offset, factor, centre, cell + c);
            for (int64_t i = base + c; i < base + count * channels; i += channels) {
                A y = (value(x[i]) - centre) * slope + offset;
                if constexpr (Map::backward) y += value(dy[i]) * factor;
                put(out + i, y);
            }
        }
    }
}

// ---- all cells ----

// What is done with the cells of one sample, or with a part of them. row(cell, offset) for every cell of NCHW;
// wide(cell, offset, block) for every block of channels_last, narrow(cell, offset) where C is below a strand.
template <class A, class Row, class Wide, class Narrow>
void reduce_sample(const shape& s, int64_t n, int64_t part, int64_t parts, Row row, Wide wide, Narrow narrow) {
    const int64_t cell = n * s.channels, offset = cell * s.pixels;
    if (!s.channels_last) {
        for (int64_t c = part * s.channels / parts; c < (part + 1) * s.channels / parts; ++c)
            row(cell + c, offset + c * s.pixels);
    } else if (s.channels < strand<A>) {
        for (int64_t c = part * s.channels / parts; c < (part + 1) * s.channels / parts; ++c)
            narrow(cell + c, offset + c);
    } else {
        int64_t turn = 0;  // blocks go round the parts
        each_block<kBlock, A>(s.channels, [&](const auto& block) {
            if (turn++ % parts == part) wide(cell, offset, block);
        });
    }
}

// task(n, part, parts) for all samples, each in parts where there are fewer samples than threads.
template <class Task> void over_samples(const shape& s, Task task) {
    const int64_t parts = s.samples >= s.threads ? 1 : std::min(4 * s.threads, s.channels);
#pragma omp parallel for num_threads(s.threads) schedule(static) if (s.threads > 1)
    for (int64_t i = 0; i < s.samples * parts; ++i) task(i / parts, i % parts, parts);
}

// A strided cell of channels_last with fewer channels than a strand, gathered into a row.
template <class T, class Use> void gathered(const T* x, int64_t pixels, int64_t channels, Use use) {
    T* row = new T[pixels];
    for (int64_t p = 0; p < pixels; ++p) row[p] = x[p * channels];
    use(row);
    delete[] row;
}

// stats of a sample's cells.
template <class T>
void sample_moments(const shape& s, const T* x, const stats<accumulator<T>>& out, int64_t n, int64_t part = 0,
    int64_t parts = 1) {
    reduce_sample<accumulator<T>>(
        s, n, part, parts, [&](int64_t cell, int64_t at) { moments_row(x + at, s.pixels, out, cell); },
        [&](int64_t cell, int64_t at, const auto& block) {
            moments_columns(x + at, s.pixels, s.channels, block, out, cell);
        },
        [&](int64_t cell, int64_t at) {
            gathered(x + at, s.pixels, s.channels, [&](const T* row) { moments_row(row, s.pixels, out, cell); });
        });
}

// sums of a sample's cells.
template <class T>
void sample_gradient_sums(const shape& s, const T* dy, const T* x, const stats<accumulator<T>>& in,
    const sums<accumulator<T>>& out, int64_t n, int64_t part = 0, int64_t parts = 1) {
    reduce_sample<accumulator<T>>(
        s, n, part, parts,
        [&](int64_t cell, int64_t at) { gradient_row(dy + at, x + at, s.pixels, in, out, cell); },
        [&](int64_t cell, int64_t at, const auto& block) {
            gradient_columns(dy + at, x + at, s.pixels, s.channels, block, in, out, cell);
        },
        [&](int64_t cell, int64_t at) {
            gathered(dy + at, s.pixels, s.channels, [&](const T* dy_row) {
                gathered(x + at, s.pixels, s.channels,
                    [&](const T* row) { gradient_row(dy_row, row, s.pixels, in, out, cell); });
            });
        });
}

template <class T> void moments(const shape& s, const T* x, const stats<accumulator<T>>& out) {
    over_samples(s, [&](int64_t n, int64_t part, int64_t parts) { sample_moments(s, x, out, n, part, parts); });
}

template <class T>
void gradient_sums(const shape& s, const T* dy, const T* x, const stats<accumulator<T>>& in,
    const sums<accumulator<T>>& out) {
    over_samples(
        s, [&](int64_t n, int64_t part, int64_t parts) { sample_gradient_sums(s, dy, x, in, out, n, part, parts); });
}

// The map of a sample, or of a part of it: of its cells in NCHW, of its pixels in channels_last.
template <class Map, class T>
void map_sample(const shape& s, const T* x, const T* dy, T* out, const Map& map, int64_t n, int64_t part = 0,
    int64_t parts = 1) {
    const int64_t cell = n * s.channels;
    if (!s.channels_last) {
        for (int64_t c = cell + part * s.channels / parts; c < cell + (part + 1) * s.channels / parts; ++c) {
            const int64_t at = c * s.pixels;
            map_row(x + at, Map::backward ? dy + at : dy, out + at, s.pixels, map, c);
        }
        return;
    }
    const int64_t from = part * s.pixels / parts, to = (part + 1) * s.pixels / parts;
    const int64_t at = cell * s.pixels + from * s.channels;
    map_columns(x + at, Map::backward ? dy + at : dy, out + at, to - from, s.channels, map, cell);
}

template <class Map, class T> void map_cells(const shape& s, const T* x, const T* dy, T* out, const Map& map) {
    over_samples(s, [&](int64_t n, int64_t part, int64_t parts) { map_sample(s, x, dy, out, map, n, part, parts); });
}

}  // namespace
