/* What a shared library shows; everything else in it is hidden. */
#pragma once

#define TALENT_EXPORT __attribute__((visibility("default")))
