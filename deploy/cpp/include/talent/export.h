// What a shared libtalent shows; everything else in it is hidden.
#pragma once

#define TALENT_API __attribute__((visibility("default")))
