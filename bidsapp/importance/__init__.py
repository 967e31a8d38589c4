"""Where in the brain a predicted age comes from: one method a module, arrays in and arrays out."""
