#include "generation.h"

const int vddk_generation = VDDK_GENERATION;
