// An interpreter for chains of elementwise operations. Blocks of the result are computed one after the other, in registers
// of one block each that stay in the first-level cache, so that memory sees the operands and the result once.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>

#include "functions.h"
#include "kernels.h"
#include "parallel.h"

namespace dfo::math {
namespace {

constexpr int64_t kBlock = 1024;  // elements, a multiple of any kWidth
constexpr int kMaxOperands = 16, kMaxInstructions = 64, kMaxValues = kMaxOperands + kMaxInstructions, kMaxDims = 6;

bool Unary(Code code) { return code >= Code::kAddScalar; }

// What is the same for all blocks: the shape with as few dimensions as it takes, and a register for every value.
struct Program {
  explicit Program(const Chain& chain);

  const Chain& chain;
  int ndim = 0;
  int64_t total = 1;
  int64_t sizes[kMaxDims];
  int64_t strides[kMaxOperands][kMaxDims];
  bool constant[kMaxOperands];  // one element for all of y
  int first_use[kMaxOperands];  // the instruction before which an operand is loaded
  int registers[kMaxValues];
  int register_count = 0;

 private:
  void Collapse();
  void Allocate();
};

Program::Program(const Chain& c) : chain(c) {
  Collapse();
  Allocate();
}

void Program::Collapse() {
  for (int d = 0; d < chain.ndim; ++d) {
    const int64_t size = chain.sizes[d];
    total *= size;
    if (size == 1) { continue; }
    bool joined = ndim > 0;
    for (int i = 0; i < chain.operand_count; ++i) {
      joined = joined && strides[i][ndim - 1] == chain.operands[i].strides[d] * size;
    }
    if (!joined) { sizes[ndim++] = 1; }
    sizes[ndim - 1] *= size;
    for (int i = 0; i < chain.operand_count; ++i) { strides[i][ndim - 1] = chain.operands[i].strides[d]; }
  }
  if (ndim == 0) {
    sizes[ndim++] = 1;
    for (int i = 0; i < chain.operand_count; ++i) { strides[i][0] = 0; }
  }
  for (int i = 0; i < chain.operand_count; ++i) {
    constant[i] = std::all_of(strides[i], strides[i] + ndim, [](int64_t s) { return s == 0; });
  }
}

// A register is free again after the last use of its value; that instruction may write its result there.
void Program::Allocate() {
  const int operands = chain.operand_count, count = chain.instruction_count;
  int last_use[kMaxValues];
  std::fill(last_use, last_use + operands + count, -1);
  std::fill(first_use, first_use + operands, count);
  for (int i = 0; i < count; ++i) {
    const Instruction& instruction = chain.instructions[i];
    for (const int value : {instruction.a, Unary(instruction.code) ? instruction.a : instruction.b}) {
      last_use[value] = i;
      if (value < operands) { first_use[value] = std::min(first_use[value], i); }
    }
  }
  int free[kMaxValues], free_count = 0;
  const auto take = [&] { return free_count > 0 ? free[--free_count] : register_count++; };
  for (int v = 0; v < operands; ++v) {
    if (constant[v] && last_use[v] >= 0) { registers[v] = take(); }
  }
  for (int i = 0; i < count; ++i) {
    for (int v = 0; v < operands; ++v) {
      if (first_use[v] == i && !constant[v]) { registers[v] = take(); }
    }
    for (int v = 0; v < operands + i; ++v) {
      if (last_use[v] == i && !(v < operands && constant[v])) { free[free_count++] = registers[v]; }
    }
    registers[operands + i] = take();
    if (last_use[operands + i] < 0) { last_use[operands + i] = count; }
  }
}

// Elements begin ... begin + count of operand `index`, as y sees it, as floats.
template <class T>
void LoadOperand(const Program& p, int index, const T* x, int64_t begin, int64_t count, float* to) {
  const int inner = p.ndim - 1;
  const int64_t* strides = p.strides[index];
  const int64_t width = p.sizes[inner], stride = strides[inner];
  for (const int64_t end = begin + count; begin < end;) {
    const int64_t first = begin % width, length = std::min(width - first, end - begin);
    int64_t offset = first * stride;
    for (int64_t d = inner - 1, row = begin / width; d >= 0; row /= p.sizes[d--]) { offset += row % p.sizes[d] * strides[d]; }
    const T* from = x + offset;
    if (stride == 1) {
      ForVectors(length, [&](int64_t i, auto lanes) { Store(to + i, Load(from + i, lanes), lanes); });
    } else if (stride == 0) {
      std::fill(to, to + length, ToFloat(*from));
    } else {
      for (int64_t i = 0; i < length; ++i) { to[i] = ToFloat(from[i * stride]); }
    }
    to += length;
    begin += length;
  }
}

template <class Function>
void Map(const float* a, float* y, int64_t count, const Function& function) {
  for (int64_t i = 0; i < count; i += kWidth) { Store(y + i, function(Load(a + i, All{})), All{}); }
}

template <class Function>
void Map(const float* a, const float* b, float* y, int64_t count, const Function& function) {
  for (int64_t i = 0; i < count; i += kWidth) { Store(y + i, function(Load(a + i, All{}), Load(b + i, All{})), All{}); }
}

void Power(const float* a, float exponent, float* y, int64_t n) {
  if (exponent == 2) {
    return Map(a, y, n, [](F x) { return x * x; });
  }
  if (exponent == 3) {
    return Map(a, y, n, [](F x) { return x * x * x; });
  }
  if (exponent == 0.5f) {
    return Map(a, y, n, [](F x) { return Sqrt(x); });
  }
  if (exponent == -0.5f) {
    return Map(a, y, n, [](F x) { return 1.0f / Sqrt(x); });
  }
  if (exponent == -1) {
    return Map(a, y, n, [](F x) { return 1.0f / x; });
  }
  Map(a, y, n, [=](F x) { return EachLane(x, [=](float v) { return std::pow(v, exponent); }); });
}

// `n` is a multiple of kWidth.
void Execute(const Instruction& instruction, const float* a, const float* b, float* y, int64_t n) {
  const F v = Set(instruction.value);
  switch (instruction.code) {
    case Code::kAdd: return Map(a, b, y, n, [](F p, F q) { return p + q; });
    case Code::kSub: return Map(a, b, y, n, [](F p, F q) { return p - q; });
    case Code::kMul: return Map(a, b, y, n, [](F p, F q) { return p * q; });
    case Code::kDiv: return Map(a, b, y, n, [](F p, F q) { return p / q; });
    case Code::kMax: return Map(a, b, y, n, Max);
    case Code::kMin: return Map(a, b, y, n, Min);
    case Code::kAddScalar: return Map(a, y, n, [=](F x) { return x + v; });
    case Code::kMulScalar: return Map(a, y, n, [=](F x) { return x * v; });
    case Code::kRsubScalar: return Map(a, y, n, [=](F x) { return v - x; });
    case Code::kRdivScalar: return Map(a, y, n, [=](F x) { return v / x; });
    case Code::kMaxScalar: return Map(a, y, n, [=](F x) { return Max(x, v); });
    case Code::kMinScalar: return Map(a, y, n, [=](F x) { return Min(x, v); });
    case Code::kPowScalar: return Power(a, instruction.value, y, n);
    case Code::kAct:
      return WithAct(static_cast<Act>(static_cast<int32_t>(instruction.value)), [&](auto function) { Map(a, y, n, function); });
    case Code::kExp: return Map(a, y, n, Exp);
    case Code::kLog: return Map(a, y, n, [](F x) { return EachLane(x, [](float e) { return std::log(e); }); });
    case Code::kSqrt: return Map(a, y, n, Sqrt);
    case Code::kRsqrt: return Map(a, y, n, [](F x) { return 1.0f / Sqrt(x); });
    case Code::kSin: return Map(a, y, n, SinCos<0>);
    case Code::kCos: return Map(a, y, n, SinCos<1>);
    case Code::kNeg: return Map(a, y, n, [](F x) { return -x; });
    case Code::kAbs: return Map(a, y, n, Abs);
    case Code::kSquare: return Map(a, y, n, [](F x) { return x * x; });
    case Code::kErf: return Map(a, y, n, Erf);
  }
}

// The registers of one thread.
class Machine {
 public:
  explicit Machine(const Program& program)
      : p_(program), memory_(static_cast<float*>(std::aligned_alloc(64, program.register_count * kBlock * sizeof(float)))) {
    std::fill(memory_.get(), memory_.get() + p_.register_count * kBlock, 0.0f);
    for (int v = 0; v < p_.chain.operand_count; ++v) {
      if (p_.constant[v] && p_.first_use[v] < p_.chain.instruction_count) { LoadValue(v, 0, kBlock, Register(v)); }
    }
  }

  void Block(int64_t begin, int64_t count) {
    const Chain& chain = p_.chain;
    const int operands = chain.operand_count, instructions = chain.instruction_count;
    // Beyond `count` a register holds what was there before: computed with, and not written to y.
    const int64_t padded = (count + kWidth - 1) / kWidth * kWidth;
    const float* values[kMaxValues];
    for (int i = 0; i < instructions; ++i) {
      const Instruction& instruction = chain.instructions[i];
      const int b = Unary(instruction.code) ? instruction.a : instruction.b;
      for (const int v : {instruction.a, b}) {
        if (v < operands && p_.first_use[v] == i) { values[v] = Operand(v, begin, count); }
      }
      float* result = Register(operands + i);
      if (i == instructions - 1 && chain.y_type == Type::kFloat && padded == count) {
        result = static_cast<float*>(chain.y) + begin;
      }
      Execute(instruction, values[instruction.a], values[b], result, padded);
      values[operands + i] = result;
    }
    const float* result = values[operands + instructions - 1];
    WithType(chain.y_type, [&](auto tag) {
      auto* y = static_cast<decltype(tag)*>(chain.y) + begin;
      if (static_cast<const void*>(y) == result) { return; }
      ForVectors(count, [&](int64_t i, auto lanes) { Store(y + i, Load(result + i, All{}), lanes); });
    });
  }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };

  float* Register(int value) const { return memory_.get() + p_.registers[value] * kBlock; }

  void LoadValue(int v, int64_t begin, int64_t count, float* to) const {
    WithType(p_.chain.operands[v].type, [&](auto tag) {
      LoadOperand(p_, v, static_cast<const decltype(tag)*>(p_.chain.operands[v].data), begin, count, to);
    });
  }

  // Where the operand's part of the block is: in place where it is floats in a row, else in its register.
  const float* Operand(int v, int64_t begin, int64_t count) const {
    if (p_.constant[v]) { return Register(v); }
    if (p_.ndim == 1 && p_.strides[v][0] == 1 && p_.chain.operands[v].type == Type::kFloat && count % kWidth == 0) {
      return static_cast<const float*>(p_.chain.operands[v].data) + begin;
    }
    LoadValue(v, begin, count, Register(v));
    return Register(v);
  }

  const Program& p_;
  const std::unique_ptr<float, Free> memory_;
};

}  // namespace

void RunChain(const Chain& chain) {
  const Program program(chain);
  if (program.total == 0) { return; }
  const int64_t work = program.total * (1 + chain.instruction_count / 4);
  ForRanges((program.total + kBlock - 1) / kBlock, work, [&](int64_t begin, int64_t end) {
    Machine machine(program);
    for (int64_t b = begin; b < end; ++b) { machine.Block(b * kBlock, std::min(kBlock, program.total - b * kBlock)); }
  });
}

}  // namespace dfo::math
