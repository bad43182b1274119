"""What evaluation in puppet world measures, one module a metric. Pictures are float32 RGB in [0, 1]."""
