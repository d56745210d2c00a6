"""The alphabet of the house: volumes, records, contrasts, geometry, artefacts, seeds, errors. Depends on nothing of ours."""
