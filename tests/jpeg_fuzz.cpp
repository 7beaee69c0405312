// Decodes and transcodes damaged files: fuzz COUNT SEED FILE... prints how often each status came, and a digest of all
// pixels, which every processor shares. With -DLIBFUZZER it is what clang's libFuzzer calls. scripts/fuzz.sh runs both,
// with sanitizers: files lie in memory of their exact size, so that a byte read past the end is noticed.

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <string>

#include "jpeg.cpp"

using Bytes = std::vector<uint8_t>;

static std::mt19937 random_number;

static uint64_t digest = 0xCBF29CE484222325;  // FNV-1a

static int below(int64_t limit) { return int(random_number() % uint64_t(limit)); }

static void damage(Bytes& file) {
    // Half of all damage is in the headers.
    const int at = below(below(2) ? int64_t(file.size()) : std::min<int64_t>(int64_t(file.size()), 700));
    switch (below(5)) {
        case 0: file[at] ^= uint8_t(1 << below(8)); break;
        case 1: file[at] = uint8_t(below(256)); break;
        case 2: file[at] = 0xFF; break;
        case 3: file.resize(at + 1); break;
        default: file.erase(file.begin() + at, file.begin() + std::min<int64_t>(int64_t(file.size()), at + below(9)));
    }
    if (file.empty()) file.push_back(0xFF);
}

// A part of the image that the header promises, on both paths, which must agree.
static int decode(const uint8_t* file, int64_t size) {
    int64_t found[3];
    en_jpeg_header(file, size, found);
    const bool usable = found[0] > 0 && found[1] > 0 && found[0] * found[1] < 4000000;
    const int64_t sides[2] = {usable ? found[0] : 8, usable ? found[1] : 8};
    const int64_t height = 1 + below(sides[0]), width = 1 + below(sides[1]), rows = 1 + below(40), columns = 1 + below(40);
    const int64_t high = rows + below(20), wide = columns + below(20);
    const int64_t view[8] = {below(sides[0] - height + 1), below(sides[1] - width + 1), height, width, high, wide,
                             below(high - rows + 1), below(wide - columns + 1)};
    const uint64_t address = reinterpret_cast<uint64_t>(file);
    const uint8_t raw = 0, flip = uint8_t(below(2));
    Bytes pixels[2];
    int32_t statuses[2];
    for (int vectors = 0; vectors < 2; ++vectors) {
        pixels[vectors].resize(rows * columns * 3);
        en_jpeg_vectors(vectors);
        en_jpeg_decode(1, &address, &size, &raw, sides, view, &flip, rows, columns, pixels[vectors].data(),
                       &statuses[vectors]);
    }
    const bool same = statuses[0] == statuses[1] && (statuses[0] || pixels[0] == pixels[1]);
    if (!same) std::abort();
    if (statuses[0] == 0)
        for (const uint8_t value : pixels[0]) digest = (digest ^ value) * 0x100000001B3;
    // Files of another kind are transcoded always, which judges the progressive ones.
    if ((statuses[0] == jpeg::NOT_HANDLED || below(4) == 0) && sides[0] * sides[1] < 40000) {
        Bytes out(below(4) ? 2 * size + 4096 : 100);
        int64_t written;
        const int status = en_jpeg_transcode(file, size, below(6), out.data(), int64_t(out.size()), &written);
        if (statuses[0] == jpeg::NOT_HANDLED) return status;
    }
    return statuses[0];
}

#ifdef LIBFUZZER
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* file, size_t size) {
    uint32_t seed = uint32_t(size);  // of the part that is decoded: the same for the same file
    for (size_t i = 0; i < size; ++i) seed = seed * 31 + file[i];
    random_number.seed(seed);
    jpeg::kept_bytes = 0;  // as below
    decode(file, int64_t(size));
    return 0;
}
#else
int main(int count, char** words) {
    std::vector<Bytes> files;
    for (int i = 3; i < count; ++i) {
        std::ifstream file(words[i], std::ios::binary);
        files.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
    random_number.seed(std::stoul(words[2]));
    jpeg::kept_bytes = 0;  // a larger image's memory would hide that a smaller one reads past its own
    std::map<int, int> counts;
    for (int i = 0; i < std::stoi(words[1]); ++i) {
        Bytes file = files[below(int64_t(files.size()))];
        for (int damages = below(4); damages > 0; --damages) damage(file);
        const Bytes exact(file);  // a copy has no room behind it
        ++counts[decode(exact.data(), int64_t(exact.size()))];
    }
    for (const auto& [status, times] : counts) printf("%d %d\n", status, times);
    printf("digest %016llx\n", static_cast<unsigned long long>(digest));
}
#endif
