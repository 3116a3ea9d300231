// bundle.json: what may stand in it, as deploy/manifest.py checks it. The files that it names are not looked at.
#pragma once

#include <filesystem>

#include "json.h"

namespace talent {

constexpr const char* kManifest = "bundle.json";
constexpr const char* kTokenizer = "tokenizer.json";
constexpr const char* kAgain = "export the bundle again with talent-export";

// What bundle.json says, checked. Throws Error where it cannot be read, is malformed or of a newer schema, and for a
// field that is missing, unknown or wrong.
json::Value read_manifest(const std::filesystem::path& path);

}  // namespace talent
