"""The products of the shop."""

from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True, slots=True)
class Product:
    sku: str
    name: str
    note: str
    price: Decimal


PRODUCTS = (
    Product("assam", "Assam", "Malty and strong, takes milk well", Decimal("6.80")),
    Product("sencha", "Sencha", "Steamed green leaf, fresh and grassy", Decimal("9.20")),
    Product("oolong", "Oolong", "Half oxidised, floral, good for many infusions", Decimal("12.50")),
    Product("rooibos", "Rooibos", "No caffeine, sweet with a hint of vanilla", Decimal("5.40")),
    Product("jasmine", "Jasmine", "Green tea scented with night blossoms", Decimal("8.60")),
    Product("lapsang", "Lapsang", "Smoked over pine wood, for the brave", Decimal("7.90")),
)

BY_SKU = {product.sku: product for product in PRODUCTS}
