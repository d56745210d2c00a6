"""Which names of columns tell who somebody is, and which useful ones do not."""

from __future__ import annotations

import pytest

from neuroprior.readers._identifying import KEYWORDS, identifying, words

TELLING = """
PatientBirthDate;patient_birth_date;Patient birth-date;patientbirthdate;OtherPatientNames;AccessionNumber;accession_number;Nachname;Vorname;acq_time
operator;OperatorsName;Name;names;first_name;FirstName;Patient Name;name1;DOB;DoB;dob;date of birth;birth_year;YearOfBirth;Geburtsdatum;Geburtstag;geburt
date_naissance;Date de naissance;MRN;mrn_number;medical_record_number;patient_id;PatientID;patientIDs;OtherPatientIDs;Patient No.;hospital_number
social_security_number;SSN;e-mail;eMail;email_address;home_address;Straße;street;zip;zip_code;ZIP;Post Code;postcode;PLZ;phone;PhoneNumber;mobile
fax;referring_physician;ReferringPhysicianName;physician;StudyDate;study_date;scan_date;ScanDate;scan time;acquisition_time;AcquisitionDateTime
visit_date;date;Datum;timestamp;session_date;session_birth_date;image_patient_name;image_AcquisitionDate;StudyInstanceUID;initials;mother_name
operator_id;scanner_operator_name;Prénom;radiologist;birthplace;site_contact_name
""".replace("\n", ";")
USEFUL = """
filename;file_name;FileName;scanner_name;ScannerName;site_name;dataset_name;label_names_dseg;protocol_name;SeriesName;InstitutionName;image_sequence_name
age;sex;group;EDSS;site;scanner;birth_weight;BirthWeight;age_at_birth;gestational_age_at_birth;birth_order;country_of_birth;EchoTime;RepetitionTime
inversion_time;time_since_onset;time_to_scan;scan_duration;scan_time_point;acquisition_time_s;survival_time;timepoint;days;days_since_first;weeks;update
handedness;subject_id;participant_id;PatientSex;PatientPosition;weight;candidate;radiologist_score;education;source_dataset;case;folder;contrast_confidence
contrast_why;true_lateral_ventricle_ml;bmi;collection;image_image_quality_score;session_weeks;mandate;sedated;rename;zipf_score;nombre_lesions
""".replace("\n", ";")


def split(text: str) -> list[str]:
    return [name for name in text.split(";") if name]


@pytest.mark.parametrize("column", split(TELLING))
def test_a_column_that_tells_who_somebody_is(column: str) -> None:
    assert identifying(column)


@pytest.mark.parametrize("column", split(USEFUL))
def test_a_column_that_does_not(column: str) -> None:
    assert not identifying(column)


def test_names_are_taken_apart_however_they_are_written() -> None:
    for name in ("PatientBirthDate", "patient_birth_date", "Patient birth-date", "patient.birth.date", "PATIENT_BIRTH_DATE"):
        assert words(name) == ["patient", "birth", "date"]
    assert words("OtherPatientIDs") == ["other", "patient", "ids"]


def test_the_keywords_of_dicom_are_all_of_them() -> None:
    """Every name of a person, and every date that DICOM keeps of a patient, is known, also where the module is not installed."""
    assert all(identifying(word) and identifying(word.lower()) for word in KEYWORDS)
    dictionary = pytest.importorskip("pydicom._dicom_dict", reason="the extra `dicom` is not installed").DicomDictionary
    persons = {entry[4] for entry in dictionary.values() if entry[0] == "PN" and entry[4]}
    assert len(persons) > 20
    assert not [word for word in persons if not identifying(word)]
    dates = {entry[4] for entry in dictionary.values() if entry[0] == "DA" and entry[4] and not entry[4].startswith("Selector")}
    assert not [word for word in dates if not identifying(word)]
