// What all ops of the pack have in common in OneFlow's registry.
#pragma once

#include "oneflow/core/framework/framework.h"

namespace dfo {

// Registers an op with any number of inputs and one output, whose shape and dtype the graph's author gives as attributes (the
// captured program knows them), and with parameters as a list of numbers.
oneflow::Maybe<void> RegisterOp(const char* name);

}  // namespace dfo
