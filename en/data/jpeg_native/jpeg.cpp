// JPEG files to pixels at the price of the crop, for en/data/jpeg.py: Pillow's to the bit, without Pillow.
//
// A sample goes through file.hpp (markers), planes.hpp (Huffman codes and DCT of the MCUs that its part needs),
// upsample.hpp (rows of RGB) and resize.hpp (Pillow's resize). Nothing here knows Python or torch.

#include "encode.hpp"
#include "resize.hpp"

namespace jpeg {

inline size_t kept_bytes = 32 << 20;  // that a thread keeps from call to call; set by the tests, before any image

// What a thread keeps from image to image.
struct Workspace {
    Tables tables;
    Intervals intervals;
    Planes planes;
    Resize resize;
    std::vector<uint16_t> sums;

    void end_call() {
        if (planes.bytes() + resize.bytes() > kept_bytes) planes = Planes(), resize = Resize();
    }
};

static bool inside(const View& view, int height, int width) {
    const Box& box = view.box;
    return box.top >= 0 && box.left >= 0 && box.height > 0 && box.width > 0 && box.height <= height - box.top &&
           box.width <= width - box.left && view.height > 0 && view.width > 0 && view.top >= 0 && view.left >= 0 &&
           view.out_height > 0 && view.out_width > 0 && view.out_height <= view.height - view.top &&
           view.out_width <= view.width - view.left;
}

static Status decode(
    Workspace& work, const uint8_t* bytes, int64_t size, int height, int width, const View& view, uint8_t* out) {
    File file;
    if (const Status status = file.read(bytes, size); status != DONE) return status;
    if (file.height != height || file.width != width) return OTHER_SIZE;
    if (!inside(view, height, width)) return BAD_BOX;
    const Box part = work.resize.begin(view);
    const Status status = work.planes.decode(file, part, work.tables, work.intervals);
    if (status == DONE) work.resize.run(Rows(file, work.planes, part, work.sums), vertical_first(view), out);
    return status;
}

static Status scale(
    Workspace& work, const uint8_t* pixels, int64_t size, int height, int width, const View& view, uint8_t* out) {
    if (size < int64_t(3) * height * width) return ENDS_EARLY;
    if (!inside(view, height, width)) return BAD_BOX;
    const Box part = work.resize.begin(view);
    work.resize.run(Pixels{pixels, width, part}, vertical_first(view), out);
    return DONE;
}

}  // namespace jpeg

extern "C" {

// Decodes `count` images into `out`, (count, height, width, 3), and says of each what became of it.
//   raw: (count,) whether the bytes are pixels, (height, width, 3), rather than a JPEG file
//   sizes: (count, 2) height and width of each image; views: (count, 8) box, to which size it is resized, and where in
//   that the outputs begin; flips: (count,)
void en_jpeg_decode(
    int64_t count, const uint64_t* addresses, const int64_t* lengths, const uint8_t* raw, const int64_t* sizes,
    const int64_t* views, const uint8_t* flips, int64_t height, int64_t width, uint8_t* out, int32_t* statuses) {
    static thread_local jpeg::Workspace work;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t* v = views + 8 * i;
        const jpeg::View view = {{int(v[0]), int(v[1]), int(v[2]), int(v[3])}, int(v[4]), int(v[5]), int(v[6]), int(v[7]),
                                 int(height), int(width), flips[i] != 0};
        const auto bytes = reinterpret_cast<const uint8_t*>(addresses[i]);
        const auto function = raw[i] ? jpeg::scale : jpeg::decode;
        try {
            statuses[i] = function(
                work, bytes, lengths[i], int(sizes[2 * i]), int(sizes[2 * i + 1]), view, out + i * height * width * 3);
        } catch (const std::bad_alloc&) {
            statuses[i] = jpeg::NO_MEMORY;
        }
    }
    work.end_call();
}

// Height, width and restart interval of a file that is decoded here.
int32_t en_jpeg_header(const uint8_t* bytes, int64_t size, int64_t* found) {
    jpeg::File file;
    const jpeg::Status status = file.read(bytes, size);
    found[0] = file.height, found[1] = file.width, found[2] = file.interval;
    return status;
}

// Writes a file's coefficients with a restart marker every `interval` MCUs (0: one each row) and optimized tables.
int32_t en_jpeg_transcode(
    const uint8_t* bytes, int64_t size, int64_t interval, uint8_t* out, int64_t capacity, int64_t* written) {
    try {
        return jpeg::transcode(bytes, size, int(interval), out, capacity, *written);
    } catch (const std::bad_alloc&) {
        return jpeg::NO_MEMORY;
    }
}

// Whether AVX2 is used from now on, which changes no bit; returns whether it can be.
int32_t en_jpeg_vectors(int32_t wanted) {
#ifdef __AVX2__
    jpeg::use_vectors = wanted != 0;
    return 1;
#else
    (void)wanted;
    return 0;
#endif
}
}
