"""Statistics of accuracies: intervals, comparisons, selection and power; pure functions of numbers and bits."""
