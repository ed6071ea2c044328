/* The major version that the loaded library plays: 6, 7, 8 or 9. The only thing compiled once per soname. */
#ifndef GENERATION_H
#define GENERATION_H

extern const int vddk_generation;

#endif
