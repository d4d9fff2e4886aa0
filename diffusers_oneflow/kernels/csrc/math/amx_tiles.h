// Products of a few tiles of numbers that amx.h has split.
#pragma once
#if defined(__AMX_BF16__)
#include "amx.h"

namespace dfo::math::amx {

// The calling thread's tile registers, as long as it lives.
class Registers {
 public:
  Registers() {
    struct {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } configuration;
    // GCC takes _tile_loadconfig to read no more than the first 8 bytes.
    asm volatile("" : : "m"(configuration));
    _tile_loadconfig(&configuration);
  }
  ~Registers() { _tile_release(); }
  Registers(const Registers&) = delete;
  Registers& operator=(const Registers&) = delete;
};

// GCC does not know that tiles are read from memory.
inline void Written() { asm volatile("" ::: "memory"); }

inline void ZeroTiles() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

constexpr int kHigh = 0, kMiddle = 1, kLow = 2;
constexpr int kLine = kColumns * sizeof(float);

// Where rows lie: bytes from a step to the next, and from a part to the next. Their tiles' lines lie side by side.
struct Places {
  int64_t step = kParts * kTile, part = kTile;
};

// Tiles 0 to 3 += the rows in 4 and 5 times the columns in 6 and 7.
inline void MultiplyTiles() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// These as (32, kColumns).
inline void StoreTiles(float* out) {
  _tile_stored(0, out, kLine);
  _tile_stored(1, out + 16, kLine);
  _tile_stored(2, out + 16 * kColumns, kLine);
  _tile_stored(3, out + 16 * kColumns + 16, kLine);
  Written();
}

// out (32, kColumns) = 32 rows, as a and b, times kColumns columns. `meanwhile` is called six times a step.
template <class Meanwhile>
inline void Multiply32x32(const char* a, const char* b, Places places, const char* columns, int64_t steps, float* out,
                          const Meanwhile& meanwhile) {
  const auto load_rows = [&](int64_t s, int part) {
    _tile_loadd(4, a + s * places.step + part * places.part, 64);
    _tile_loadd(5, b + s * places.step + part * places.part, 64);
  };
  const auto load_columns = [&](int64_t s, int part) {
    const char* from = columns + 2 * (s * kParts + part) * kTile;
    _tile_loadd(6, from, 64);
    _tile_loadd(7, from + kTile, 64);
  };
  const auto multiply = [&] {
    MultiplyTiles();
    meanwhile();
  };
  Written();
  ZeroTiles();
  for (int64_t s = 0; s < steps; ++s) {
    load_rows(s, kHigh), load_columns(s, kLow), multiply();
    load_columns(s, kMiddle), multiply();
    load_rows(s, kMiddle), multiply();
    load_columns(s, kHigh), multiply();
    load_rows(s, kLow), multiply();
  }
  for (int64_t s = 0; s < steps; ++s) { load_rows(s, kHigh), load_columns(s, kHigh), multiply(); }
  StoreTiles(out);
}

// out (16, kColumns) = 16 rows times kColumns columns. `meanwhile` is called six times a step.
template <class Meanwhile>
inline void Multiply16x32(const char* a, Places places, const char* columns, int64_t steps, float* out,
                          const Meanwhile& meanwhile) {
  // Tiles 0 and 1 are the sums of the large products, 2 and 3 of the small ones: so many keep the unit busy.
  const auto load_columns = [&](int part) {
    _tile_loadd(6, columns + 2 * part * kTile, 64);
    _tile_loadd(7, columns + 2 * part * kTile + kTile, 64);
  };
  const auto small = [&](int part) {
    _tile_loadd(5, a + part * places.part, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  };
  Written();
  ZeroTiles();
  for (int64_t s = 0; s < steps; ++s, a += places.step, columns += 2 * kParts * kTile) {
    load_columns(kHigh);
    _tile_loadd(4, a, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    small(kMiddle), small(kLow);
    load_columns(kMiddle);
    small(kMiddle), small(kHigh);
    load_columns(kLow);
    small(kHigh);
    for (int i = 0; i < 6; ++i) { meanwhile(); }
  }
  alignas(64) float lower[16 * kColumns];
  _tile_stored(0, out, kLine);
  _tile_stored(1, out + 16, kLine);
  _tile_stored(2, lower, kLine);
  _tile_stored(3, lower + 16, kLine);
  Written();
  Add(lower, 16 * kColumns, out);
}

// out (32, kColumns) = 32 rows, as a and b, times the first 16 of kColumns columns; the others of out are not written.
// `meanwhile` is called six times a step.
template <class Meanwhile>
inline void Multiply32x16(const char* a, const char* b, const char* columns, int64_t steps, float* out,
                          const Meanwhile& meanwhile) {
  const auto load_columns = [&](int part) { _tile_loadd(7, columns + 2 * part * kTile, 64); };
  // Tiles 0 and 1 are the sums of the large products, 2 to 5 of the small ones by turns: a sum has to wait for its last.
  // One function for all of them cannot be: the numbers of tiles are part of the instructions.
  const auto large = [&] {
    _tile_loadd(6, a, 64);
    _tile_dpbf16ps(0, 6, 7);
    _tile_loadd(6, b, 64);
    _tile_dpbf16ps(1, 6, 7);
    meanwhile();
  };
  const auto small = [&](int part) {
    _tile_loadd(6, a + part * kTile, 64);
    _tile_dpbf16ps(2, 6, 7);
    _tile_loadd(6, b + part * kTile, 64);
    _tile_dpbf16ps(3, 6, 7);
    meanwhile();
  };
  const auto other = [&](int part) {
    _tile_loadd(6, a + part * kTile, 64);
    _tile_dpbf16ps(4, 6, 7);
    _tile_loadd(6, b + part * kTile, 64);
    _tile_dpbf16ps(5, 6, 7);
    meanwhile();
  };
  Written();
  ZeroTiles();
  _tile_zero(4);
  _tile_zero(5);
  for (int64_t s = 0; s < steps; ++s, a += kParts * kTile, b += kParts * kTile, columns += 2 * kParts * kTile) {
    load_columns(kHigh), large(), small(kMiddle), other(kLow);
    load_columns(kMiddle), small(kHigh), other(kMiddle);
    load_columns(kLow), small(kHigh);
  }
  alignas(64) float lower[2][32 * 16];
  _tile_stored(2, lower[0], 64);
  _tile_stored(3, lower[0] + 16 * 16, 64);
  _tile_stored(4, lower[1], 64);
  _tile_stored(5, lower[1] + 16 * 16, 64);
  _tile_stored(0, out, kLine);
  _tile_stored(1, out + 16 * kColumns, kLine);
  Written();
  Add(lower[1], 32 * 16, lower[0]);
  for (int64_t r = 0; r < 32; ++r) { Add(lower[0] + r * 16, 16, out + r * kColumns); }
}

}  // namespace dfo::math::amx
#endif
