// Which GPUs an engine can be for, and the command that builds engines: deploy/targets.py.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace talent {

constexpr std::string_view kPortable = "portable";

// Whether an engine for `built_for` ("sm87", "sm86+sm89" or kPortable) runs on the GPU `arch` ("sm86"). Throws Error
// where this is not the name of a GPU.
bool covers(std::string_view built_for, std::string_view arch);

// The command that builds a bundle's engines. runtime and arch: what they are for, empty for the usual.
std::string build_command(const std::filesystem::path& directory, std::string_view runtime = "",
                          std::string_view arch = "");

}  // namespace talent
