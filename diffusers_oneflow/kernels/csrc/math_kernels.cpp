// The memory-bound kernels: each a call of one function of math/.
#include <cstring>

#include "kernel.h"

namespace dfo {
namespace {

// ints: n, positions, channels, groups, eps, act, channels_last, type; inputs x, weight, bias (both or none).
class GroupNorm final : public Kernel {
 public:
  explicit GroupNorm(Params p)
      : n_(p.Int()), positions_(p.Int()), channels_(p.Int()), groups_(p.Int()), eps_(p.Float()), act_(p.Act()),
        last_(p.Int() != 0), type_(p.Type()) {}
  void Run(const Buffers& b) override {
    const bool affine = b.in.size() > 1;
    Math().group_norm(type_, b.in[0], affine ? b.in[1] : nullptr, affine ? b.in[2] : nullptr, b.out, n_, positions_, channels_,
                      groups_, eps_, act_, last_);
  }

 private:
  int64_t n_, positions_, channels_, groups_;
  double eps_;
  Act act_;
  bool last_;
  Type type_;
};

// ints: rows, columns, eps, type; inputs x, and weight, and bias.
class LayerNorm final : public Kernel {
 public:
  explicit LayerNorm(Params p) : rows_(p.Int()), columns_(p.Int()), eps_(p.Float()), type_(p.Type()) {}
  void Run(const Buffers& b) override {
    const void* weight = b.in.size() > 1 ? b.in[1] : nullptr;
    const void* bias = b.in.size() > 2 ? b.in[2] : nullptr;
    Math().layer_norm(type_, b.in[0], weight, bias, b.out, rows_, columns_, eps_);
  }

 private:
  int64_t rows_, columns_;
  double eps_;
  Type type_;
};

// As layer_norm, without a bias.
class RmsNorm final : public Kernel {
 public:
  explicit RmsNorm(Params p) : rows_(p.Int()), columns_(p.Int()), eps_(p.Float()), type_(p.Type()) {}
  void Run(const Buffers& b) override {
    Math().rms_norm(type_, b.in[0], b.in.size() > 1 ? b.in[1] : nullptr, b.out, rows_, columns_, eps_);
  }

 private:
  int64_t rows_, columns_;
  double eps_;
  Type type_;
};

// ints: rows, columns, type.
class Softmax final : public Kernel {
 public:
  explicit Softmax(Params p) : rows_(p.Int()), columns_(p.Int()), type_(p.Type()) {}
  void Run(const Buffers& b) override { Math().softmax(type_, b.in[0], b.out, rows_, columns_); }

 private:
  int64_t rows_, columns_;
  Type type_;
};

// ints: rows, columns of the result, act, gate_first, type.
class Gated final : public Kernel {
 public:
  explicit Gated(Params p) : rows_(p.Int()), columns_(p.Int()), act_(p.Act()), first_(p.Int() != 0), type_(p.Type()) {}
  void Run(const Buffers& b) override { Math().gated(type_, b.in[0], b.out, rows_, columns_, act_, first_); }

 private:
  int64_t rows_, columns_;
  Act act_;
  bool first_;
  Type type_;
};

// ints: bytes of an item, offset in items, sizes[], strides[].
class Copy final : public Kernel {
 public:
  explicit Copy(Params p) : item_(p.Int()), offset_(p.Int()), sizes_(p.Ints()), strides_(p.Ints()) {}
  void Run(const Buffers& b) override {
    Math().copy(item_, static_cast<const char*>(b.in[0]) + offset_ * item_, b.out, static_cast<int32_t>(sizes_.size()),
                sizes_.data(), strides_.data());
  }

 private:
  int64_t item_, offset_;
  std::vector<int64_t> sizes_, strides_;
};

// ints: bytes. The memory plan gives the result the input's own place; copied only where it could not.
class View final : public Kernel {
 public:
  explicit View(Params p) : bytes_(p.Int()) {}
  void Run(const Buffers& b) override {
    const int64_t stride = 1;
    if (b.in[0] != b.out) { Math().copy(1, b.in[0], b.out, 1, &bytes_, &stride); }
  }

 private:
  int64_t bytes_;
};

// ints: rows, bytes of each part's row [].
class Concat final : public Kernel {
 public:
  explicit Concat(Params p) : rows_(p.Int()), bytes_(p.Ints()) {}
  void Run(const Buffers& b) override {
    Math().concat(b.in.data(), bytes_.data(), static_cast<int32_t>(bytes_.size()), rows_, b.out);
  }

 private:
  int64_t rows_;
  std::vector<int64_t> bytes_;
};

// ints: bytes of a pixel, n, h, w, oh, ow.
class Upsample final : public Kernel {
 public:
  explicit Upsample(Params p) : bytes_(p.Int()), n_(p.Int()), h_(p.Int()), w_(p.Int()), oh_(p.Int()), ow_(p.Int()) {}
  void Run(const Buffers& b) override { Math().upsample_nearest(bytes_, b.in[0], b.out, n_, h_, w_, oh_, ow_); }

 private:
  int64_t bytes_, n_, h_, w_, oh_, ow_;
};

// ints: ids, bytes of a row, rows of the table; inputs table, ids (int64).
class Embedding final : public Kernel {
 public:
  explicit Embedding(Params p) : count_(p.Int()), bytes_(p.Int()), rows_(p.Int()) {}
  void Run(const Buffers& b) override {
    if (!Math().embedding(b.in[0], static_cast<const int64_t*>(b.in[1]), b.out, count_, bytes_, rows_)) {
      throw std::out_of_range("index out of range in self");  // torch's words
    }
  }

 private:
  int64_t count_, bytes_, rows_;
};

// ints: from, to, elements.
class Cast final : public Kernel {
 public:
  explicit Cast(Params p) : from_(p.Type()), to_(p.Type()), count_(p.Int()) {}
  void Run(const Buffers& b) override { Math().cast(from_, to_, b.in[0], b.out, count_); }

 private:
  Type from_, to_;
  int64_t count_;
};

// ints: sizes[], type of the result, operands; for each its type and strides; instructions; for each its code, a, b, value.
class Chain final : public Kernel {
 public:
  explicit Chain(Params p) : sizes_(p.Ints()), type_(p.Type()) {
    if (sizes_.empty()) { sizes_.push_back(1); }
    if (sizes_.size() > 6) { throw std::invalid_argument("a chain over more than 6 dimensions"); }
    operands_.resize(static_cast<size_t>(p.Int()));
    for (math::Operand& operand : operands_) {
      operand = {};
      operand.type = p.Type();
      const std::vector<int64_t> strides = p.Ints();
      std::copy(strides.begin(), strides.end(), operand.strides);
    }
    instructions_.resize(static_cast<size_t>(p.Int()));
    for (math::Instruction& i : instructions_) {
      i.code = static_cast<math::Code>(p.Int());
      i.a = static_cast<int32_t>(p.Int());
      i.b = static_cast<int32_t>(p.Int());
      i.value = static_cast<float>(p.Float());
    }
  }
  void Run(const Buffers& b) override {
    std::vector<math::Operand> operands = operands_;
    for (size_t i = 0; i < operands.size(); ++i) { operands[i].data = b.in[i]; }
    math::Chain chain{};
    chain.operands = operands.data();
    chain.operand_count = static_cast<int32_t>(operands.size());
    chain.instructions = instructions_.data();
    chain.instruction_count = static_cast<int32_t>(instructions_.size());
    chain.ndim = static_cast<int32_t>(sizes_.size());
    std::copy(sizes_.begin(), sizes_.end(), chain.sizes);
    chain.y = b.out;
    chain.y_type = type_;
    Math().chain(chain);
  }

 private:
  std::vector<int64_t> sizes_;
  Type type_;
  std::vector<math::Operand> operands_;
  std::vector<math::Instruction> instructions_;
};

}  // namespace

std::vector<KernelKind> MathKernels() {
  return {{"dfo_group_norm", Make<GroupNorm>},
          {"dfo_layer_norm", Make<LayerNorm>},
          {"dfo_rms_norm", Make<RmsNorm>},
          {"dfo_softmax", Make<Softmax>},
          {"dfo_gated", Make<Gated>},
          {"dfo_copy", Make<Copy>},
          {"dfo_view", Make<View>},
          {"dfo_concat", Make<Concat>},
          {"dfo_upsample", Make<Upsample>},
          {"dfo_embedding", Make<Embedding>},
          {"dfo_cast", Make<Cast>},
          {"dfo_chain", Make<Chain>}};
}

}  // namespace dfo
