"""DiLoCo: many weakly connected members train one model and talk once in many steps."""
