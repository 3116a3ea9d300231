// What stands behind the C interface's handles.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "quote.h"
#include "talent/segmenter.h"
#include "talent/talent_c.h"

struct talent_segmenter {
  explicit talent_segmenter(std::unique_ptr<talent::Segmenter> made)
      : segmenter(std::move(made)), auto_report(talent::joined(segmenter->auto_report(), "\n")) {}

  const std::unique_ptr<talent::Segmenter> segmenter;
  const std::string auto_report;
};

struct talent_prompt {
  talent::Prompt prompt;
};
