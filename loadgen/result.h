/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The result:
 * one JSON object on standard output.
 */
#ifndef RESULT_H
#define RESULT_H

#include <stdint.h>

#include "counters.h"

void print_result(const struct figures *measured,
                  const struct figures *counted, uint64_t verified);

#endif
