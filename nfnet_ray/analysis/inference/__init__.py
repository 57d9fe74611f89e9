"""Statistics of accuracies (intervals, comparisons, selection and power) as pure functions of numbers and bits."""
