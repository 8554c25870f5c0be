// The batch transform on CPUs as one pass over the images: the arithmetic of _kernels.py, in 32-bit words.
//
// _cpp.py compiles it on first use. Every operation is rounded as IEEE 754 says (-ffp-contract=off, and no
// -ffast-math), so the bits are the same from any compiler, in vectors of any width and on any number of threads. The
// numbers of purposes, rounds and coefficients are those of rng/philox.py.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(_WIN32)
#define EXPORTED extern "C" __declspec(dllexport)
#else
#define EXPORTED extern "C"
#endif

// Functions of the OpenMP that torch has loaded.
struct OpenMP {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel: calls a function on many threads
    int (*thread_num)();                                           // omp_get_thread_num
    int (*num_threads)();                                          // omp_get_num_threads
};

// The arguments of make_triple; _cpp.py has the same fields in the same order.
struct Batch {
    const OpenMP* openmp;  // null: one thread does it all
    const void* images;  // uint8 or float32, shape (batch, numel)
    const int64_t* position;
    const float *signal, *sigma, *target_x, *target_n;  // tables by step
    const int64_t* thresholds;                          // of the density of t; null if it is uniform
    const int64_t* key;                                 // two words
    float* x_t;
    int64_t* t;
    float* target;
    int64_t batch, numel, pixels, width, num_timesteps;  // of one image: numel values, channels of so many pixels
    int64_t flip_below;                                  // an image is mirrored if its word is below this
    int64_t stage;                                       // times 256
    int64_t draw;                                        // how t is drawn, see enum Draw
    int64_t noise;                                       // see enum Noise
    int64_t is_bytes, predicts_noise, threads;
    double strength;  // of the noise
};

namespace {

using word = uint32_t;

enum Draw { GIVEN, INDEPENDENT, STRIDED, LOW_DISCREPANCY };
enum Noise { GAUSSIAN, OFFSET, RISING_OFFSET, PERTURBATION };
enum Purpose {
    TIMESTEP = 0,
    FLIP = 1,
    NOISE = 2,
    TIMESTEP_OFFSET = 3,
    NOISE_OFFSET = 11,
    NOISE_PERTURBATION = 12,
    TIMESTEP_SCRAMBLE = 15
};

#if defined(__AVX512F__)
constexpr int LANES = 16;  // words in a vector
#else
constexpr int LANES = 8;
#endif
constexpr int64_t CHUNK = 512;  // numbers of a quarter of an image that are made at once; they stay in the cache

struct Key {
    word low, high;
};

struct Block {
    word c0, c1, c2, c3;
};

// Philox4x32 (Salmon et al. 2011), as philox.philox_4x32.
Block philox(Block c, Key key, int rounds) {
    for (int round = 0; round < rounds; ++round) {
        const uint64_t p0 = uint64_t{c.c0} * 0xD2511F53, p1 = uint64_t{c.c2} * 0xCD9E8D57;
        c = {word(p1 >> 32) ^ c.c1 ^ key.low, word(p1), word(p0 >> 32) ^ c.c3 ^ key.high, word(p0)};
        key = {key.low + 0x9E3779B9, key.high + 0xBB67AE85};
    }
    return c;
}

// Vectors of words, each in the low half of a longer element. What is in the high half has no meaning.
typedef uint64_t Words __attribute__((vector_size(4 * LANES)));

inline Words multiply(Words words, word factor) {
#if defined(__AVX512F__) && !defined(__clang__)  // clang finds this instruction by itself
    typedef int Halves __attribute__((vector_size(4 * LANES)));
    typedef long long Products __attribute__((vector_size(4 * LANES)));
    return (Words)__builtin_ia32_pmuludq512_mask((Halves)words, (Halves)(Words{} + factor), Products{}, -1);
#elif defined(__AVX2__) && !defined(__clang__)
    typedef int Halves __attribute__((vector_size(4 * LANES)));
    return (Words)__builtin_ia32_pmuludq256((Halves)words, (Halves)(Words{} + factor));
#else
    return (words & 0xFFFFFFFF) * factor;
#endif
}

// The words of a range of blocks, seven rounds each: words[j] has the j-th word of every block.
void draw_words(word use, int64_t n, Key key, int64_t start, int64_t count, word (*words)[CHUNK]) {
    for (int64_t i = 0; i < count; i += LANES) {
        Words counters[2][4] = {};  // of the even blocks and of the odd ones
        for (int odd = 0; odd < 2; ++odd) {
            for (int lane = 0; lane < LANES / 2; ++lane) counters[odd][0][lane] = start + i + 2 * lane + odd;
            counters[odd][1] = Words{} + use;
            counters[odd][2] = Words{} + word(n);
            counters[odd][3] = Words{} + word(n >> 32);
        }
        Key k = key;
#pragma GCC unroll 7
        for (int round = 0; round < 7; ++round) {
#pragma GCC unroll 2
            for (auto& [c0, c1, c2, c3] : counters) {
                const Words p0 = multiply(c0, 0xD2511F53), p1 = multiply(c2, 0xCD9E8D57);
                c0 = (p1 >> 32) ^ (c1 ^ k.low);
                c1 = p1;
                c2 = (p0 >> 32) ^ (c3 ^ k.high);
                c3 = p0;
            }
            k = {k.low + 0x9E3779B9, k.high + 0xBB67AE85};
        }
        for (int j = 0; j < 4; ++j) {
            const Words both = (counters[0][j] & 0xFFFFFFFF) | (counters[1][j] << 32);
            std::memcpy(words[j] + i, &both, sizeof both);
        }
    }
}

template <class To, class From>
inline To cast_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "only the type changes");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

// x = 2^exponent (1 + f), where 1 + f lies between 2/3, whose bits are 0x3F2AAAAB, and 4/3. And
// log(1 + f) = f + f^2 q(f), with q fitted at Chebyshev points to a relative error below 3e-8.
inline float compute_log(float x) {
    const int32_t bits = cast_bits<int32_t>(x);
    const int32_t exponent = (bits - 0x3F2AAAAB) >> 23;
    const float f = cast_bits<float>(bits - exponent * (1 << 23)) - 1;
    float q = fma(0.14026354253292084f, f, -0.15388545393943787f);
    q = fma(q, f, 0.13995808362960815f);
    q = fma(q, f, -0.1641595959663391f);
    q = fma(q, f, 0.20011168718338013f);
    q = fma(q, f, -0.2500782012939453f);
    q = fma(q, f, 0.33333197236061096f);
    q = fma(q, f, -0.49999937415122986f);
    return fma(float(exponent), 0.6931471805599453f, fma(f * f, q, f));
}

// Two words to two standard normal numbers (Box & Muller 1958). The first bit of v is half a turn, the others an angle
// between -1/4 and 1/4 of a turn, plus a quarter.
inline void box_muller(word u, word v, float& first, float& second) {
    const float x = (float(u) + 0.5f) * 0x1p-32f;
    const float length = std::sqrt(-2 * compute_log(x));
    const float radius = cast_bits<float>(cast_bits<word>(length) ^ (v & 0x80000000));
    const float angle = float(int32_t(v & 0x7FFFFFFF) - 0x40000000) * 0x1p-32f;
    const float r = angle * angle;
    float sine = fma(-39.76072311401367f, r, 76.58128356933594f);
    sine = fma(sine, r, -81.60247802734375f);
    sine = fma(sine, r, 41.34168243408203f);
    sine = fma(sine, r, -6.2831854820251465f);
    float cosine = fma(-24.981836318969727f, r, 60.143951416015625f);
    cosine = fma(cosine, r, -85.45356750488281f);
    cosine = fma(cosine, r, 64.93934631347656f);
    cosine = fma(cosine, r, -19.739208221435547f);
    cosine = fma(cosine, r, 1);
    first = radius * (angle * sine);
    second = radius * cosine;
}

// Normal numbers of one example, for a range of places in each quarter; up to LANES - 1 more are drawn than asked for.
void draw_normals(word use, int64_t n, Key key, int64_t start, int64_t count, float (*normals)[CHUNK]) {
    alignas(64) word words[4][CHUNK];
    count = (count + LANES - 1) / LANES * LANES;
    draw_words(use, n, key, start, count, words);
    for (int j = 0; j < 4; j += 2)
        for (int64_t i = 0; i < count; ++i) box_muller(words[j][i], words[j + 1][i], normals[j][i], normals[j + 1][i]);
}

word reverse_bits(word w) {
    w = (w & 0xFFFF) << 16 | w >> 16;
    w = (w & 0xFF00FF) << 8 | (w >> 8 & 0xFF00FF);
    w = (w & 0xF0F0F0F) << 4 | (w >> 4 & 0xF0F0F0F);
    w = (w & 0x33333333) << 2 | (w >> 2 & 0x33333333);
    return (w & 0x55555555) << 1 | (w >> 1 & 0x55555555);
}

// As timesteps.draw_word and find_steps.
int64_t draw_step(const Batch& batch, int64_t n, Key key) {
    const word stage = word(batch.stage), low = word(n), high = word(n >> 32);
    word w;
    if (batch.draw == INDEPENDENT) {
        w = philox({0, stage + TIMESTEP, low, high}, key, 10).c0;
    } else if (batch.draw == STRIDED) {
        w = philox({0, stage + TIMESTEP_OFFSET, 0, 0}, key, 10).c0 + low * 0x9D22D7FD;
    } else {
        const Block scramble = philox({0, stage + TIMESTEP_SCRAMBLE, high, word(n >> 63)}, key, 10);
        w = low + scramble.c0;
        w ^= w * 0x3D20ADEA;
        w = (w + scramble.c1) * (scramble.c2 | 1);
        w ^= w * 0x05526C56;
        w = reverse_bits(w ^ w * 0x53A22864);
    }
    if (!batch.thresholds) return int64_t(uint64_t{w} * uint64_t(batch.num_timesteps) >> 32);
    const int64_t* last = batch.thresholds + batch.num_timesteps - 1;
    return std::upper_bound(batch.thresholds, last, int64_t{w}) - batch.thresholds;
}

bool draw_flip(int64_t stage, int64_t n, Key key, int64_t flip_below) {
    return philox({0, word(stage) + FLIP, word(n), word(n >> 32)}, key, 10).c0 < flip_below;
}

inline float scale(float value) { return value; }
inline float scale(uint8_t value) { return float(value) / 127.5f - 1; }

// The factors of one example: of x_0 and the noise in x_t, and of both in the target.
struct Factors {
    float signal, sigma, target_x, target_n;
};

template <class Value>
void write(const Value* __restrict values, const float* __restrict added, const float* __restrict learned,
           int64_t count, Factors of, bool predicts_noise, float* __restrict x_t, float* __restrict target) {
    for (int64_t i = 0; i < count; ++i) {
        const float x_0 = scale(values[i]);
        x_t[i] = of.signal * x_0 + of.sigma * added[i];
        target[i] = predicts_noise ? learned[i] : of.target_x * x_0 + of.target_n * learned[i];
    }
}

// Copy a range of an image's mirror image.
template <class Value>
void mirror(const Value* image, int64_t begin, int64_t count, int64_t width, Value* mirrored) {
    for (int64_t i = 0; i < count;) {
        const int64_t column = (begin + i) % width, length = std::min(width - column, count - i);
        const Value* value = image + begin + i - column + width - 1 - column;
        for (int64_t j = 0; j < length; ++j) mirrored[i + j] = value[-j];
        i += length;
    }
}

// Add to each channel its normal number; `normals` has the values from `begin` on.
void add_offset(const Batch& batch, int64_t n, Key key, float strength, int64_t begin, int64_t count, float* normals) {
    const int64_t quarter = (batch.numel / batch.pixels + 3) / 4;  // of the channels' numbers
    for (int64_t i = 0; i < count;) {
        const int64_t channel = (begin + i) / batch.pixels;
        const int64_t end = std::min(count, (channel + 1) * batch.pixels - begin);
        const Block counter = {word(channel % quarter), word(batch.stage) + NOISE_OFFSET, word(n), word(n >> 32)};
        const Block w = philox(counter, key, 7);
        float number[4];
        box_muller(w.c0, w.c1, number[0], number[1]);
        box_muller(w.c2, w.c3, number[2], number[3]);
        const float offset = strength * number[channel / quarter];
        for (; i < end; ++i) normals[i] += offset;
    }
}

template <class Value>
void make_chunk(const Batch& batch, int64_t example, int64_t start, int64_t count) {
    const int64_t n = batch.position[example], quarter = (batch.numel + 3) / 4;
    const Key key = {word(batch.key[0]), word(batch.key[1])};
    const int64_t step = batch.draw == GIVEN ? batch.t[example] : draw_step(batch, n, key);
    if (batch.draw != GIVEN && start == 0) batch.t[example] = step;
    const Factors factors = {batch.signal[step], batch.sigma[step], batch.target_x[step], batch.target_n[step]};
    const bool is_mirrored = batch.flip_below && draw_flip(batch.stage, n, key, batch.flip_below);
    float strength = float(batch.strength);
    if (batch.noise == RISING_OFFSET) {
        const float signal = batch.signal[batch.num_timesteps - 1], sigma = batch.sigma[batch.num_timesteps - 1];
        strength *= factors.sigma / (factors.signal * factors.signal) / (sigma / (signal * signal));
    }

    alignas(64) float noise[4][CHUNK], more[4][CHUNK];
    draw_normals(word(batch.stage) + NOISE, n, key, start, count, noise);
    if (batch.noise == PERTURBATION) draw_normals(word(batch.stage) + NOISE_PERTURBATION, n, key, start, count, more);
    for (int j = 0; j < 4; ++j) {
        const int64_t begin = j * quarter + start, length = std::min(count, batch.numel - begin);
        if (length <= 0) break;
        const float* added = noise[j];
        if (batch.noise == OFFSET || batch.noise == RISING_OFFSET) {
            add_offset(batch, n, key, strength, begin, length, noise[j]);
        } else if (batch.noise == PERTURBATION) {
            for (int64_t i = 0; i < length; ++i) more[j][i] = noise[j][i] + strength * more[j][i];
            added = more[j];
        }
        const Value* image = static_cast<const Value*>(batch.images) + example * batch.numel;
        const Value* values = image + begin;
        Value mirrored[CHUNK];
        if (is_mirrored) {
            mirror(image, begin, length, batch.width, mirrored);
            values = mirrored;
        }
        const int64_t place = example * batch.numel + begin;
        write(values, added, noise[j], length, factors, batch.predicts_noise, batch.x_t + place, batch.target + place);
    }
}

// Do `work` for every item. Each thread has the same part of them in every batch; to hand
// them to whoever is free was slower at times (benchmarks/transform.md).
template <class Work>
void share_out(int64_t items, int64_t threads, const OpenMP* openmp, const Work& work) {
    struct Shared {
        const Work& work;
        const OpenMP* openmp;
        int64_t items;
    } shared = {work, openmp, items};
    const auto run = [](void* data) {
        const Shared& all = *static_cast<const Shared*>(data);
        const int64_t part = all.openmp->thread_num(), parts = all.openmp->num_threads();
        const int64_t stop = (part + 1) * all.items / parts;
        for (int64_t item = part * all.items / parts; item < stop; ++item) all.work(item);
    };
    if (openmp && threads > 1) {
        openmp->parallel(run, &shared, unsigned(threads), 0);
    } else {
        for (int64_t item = 0; item < items; ++item) work(item);
    }
}

}  // namespace

// Make x_t, t (unless it is given) and the target.
EXPORTED void make_triple(const Batch* batch) {
    const int64_t quarter = (batch->numel + 3) / 4, chunks = (quarter + CHUNK - 1) / CHUNK;
    share_out(batch->batch * chunks, batch->threads, batch->openmp, [=](int64_t item) {
        const int64_t example = item / chunks, start = item % chunks * CHUNK, count = std::min(CHUNK, quarter - start);
        const auto make = batch->is_bytes ? make_chunk<uint8_t> : make_chunk<float>;
        make(*batch, example, start, count);
    });
}

// Draw normal numbers as philox.normals does; `use` is a purpose plus 256 times the stage.
EXPORTED void draw_normals(int64_t use, int64_t key_low, int64_t key_high, const int64_t* position, int64_t batch,
                           int64_t numel, float* normals, int64_t threads, const OpenMP* openmp) {
    const int64_t quarter = (numel + 3) / 4, chunks = (quarter + CHUNK - 1) / CHUNK;
    share_out(batch * chunks, threads, openmp, [=](int64_t item) {
        const int64_t example = item / chunks, start = item % chunks * CHUNK, count = std::min(CHUNK, quarter - start);
        alignas(64) float chunk[4][CHUNK];
        draw_normals(word(use), position[example], {word(key_low), word(key_high)}, start, count, chunk);
        for (int j = 0; j < 4; ++j) {
            const int64_t begin = j * quarter + start, length = std::min(count, numel - begin);
            if (length > 0) std::memcpy(normals + example * numel + begin, chunk[j], length * sizeof(float));
        }
    });
}
