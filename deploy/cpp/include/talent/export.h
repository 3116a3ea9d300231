/* What a shared libtalent shows; everything else in it is hidden. Read by C, too. */
#pragma once

#define TALENT_API __attribute__((visibility("default")))
