#pragma once

namespace dfo {

// Replaces DequeueNNGraph; false where the loaded liboneflow has no such call.
bool InstallRaceCure();

// How often a job had ended before it was enqueued, each time a crash averted.
long RaceWaits();

}  // namespace dfo
