"""What everybody may know: requests, results, presets, rules, calibration, errors, guarded files."""
