"""Many sparse regression rows over one design, each with a certificate."""
