"""Where LoRAs come from: sources, their headers, labels and splits."""
