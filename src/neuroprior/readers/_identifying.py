"""Names of columns that say who somebody is or when they were seen; the cells of such a column go nowhere."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


PERSON = _set(
    "accession accessionnumber mrn ssn nhs dob birthdate birthdates birthday dateofbirth yearofbirth birthyear birthname birthplace "
    "geburtsdatum geburtstag geburtsname geburtsort geboren naissance nascita nacimiento nascimento geboortedatum "
    "surname forename nickname firstname lastname middlename givenname familyname fullname maidenname patientname subjectname "
    "nachname vorname familienname prenom apellido apellidos cognome initials initialen monogram "
    "patientid hospitalid socialsecurity username medicalrecord medicalrecordnumber nationalid passport insurance versicherungsnummer krankenkasse "
    "operator operators physician physicians doctor doctors arzt arztin medecin "
    "address addresses adresse anschrift street strasse wohnort zip zipcode postcode postcodes postal plz "
    "phone phones phonenumber telephone telephonenumber telefon telefonnummer tel mobile fax telecom email emailaddress mail "
    "date dates datetime datum timestamp acqdate acqtime scandate studydate visitdate"
)
"""Words that suffice wherever they stand in a column's name."""

BIRTH = frozenset(("birth", "geburt", "geburts", "born"))
NOT_OF_BIRTH_DATE = _set(
    "weight gewicht length height size circumference percentile centile order age gestational gestation weeks preterm term "
    "apgar mode complications number multiple country sex season"
)
"""Words that make a column about birth one that identifies nobody: a weight at birth, an age at birth."""

NAMES = frozenset(("name", "names", "nom", "noms", "naam"))
NAMED = _set(
    "patient subject participant person people mother father parent guardian child first last middle given family maiden full sur "
    "other birth alias contact author reader rater reviewer"
)
"""Whose names are a person's, whatever else the column is about."""
THINGS = _set(
    "file filename image scanner site dataset series sequence protocol device model manufacturer label labels contrast channel channels group "
    "cohort collection region regions roi structure column atlas template space software pipeline algorithm method coil scan modality "
    "test task drug medication treatment disease diagnosis variant gene class category folder project centre center institution tumour "
    "tumor lesion source variable event condition field tool batch run phase arm network layer metric score brand transmitting receiving "
    "kit assay scale questionnaire study country language"
)
"""What may have a name without being a person."""

ALONE = frozenset(("radiologist", "technician", "technologist", "nurse"))
"""Persons where the column is called nothing else; a radiologist's score identifies nobody."""

NUMBERED = frozenset(("id", "ids", "number", "numbers", "no", "nr", "identifier"))
NUMBERS = frozenset(("patient", "hospital", "national"))
"""Whose numbers stand in registers of people; ``subject`` and ``participant`` are keys of a dataset and not among them."""

MOMENTS = _set(
    "acq acquisition study series content scan scanning exam examination instance procedure admission admitting discharge creation "
    "performed birth"
)
CLOCK = frozenset(("time", "times", "uhrzeit", "heure", "hora"))
NOT_A_CLOCK = _set(
    "since to from between until after before point points s sec secs second seconds ms msec min mins minute minutes duration total "
    "repetition echo inversion"
)
"""Words that make a time a duration."""

KEYWORDS = _set(
    "CurrentObserverTrial ConsultingPhysicianName ContentCreatorName DocumentAuthorTrial EvaluatorName HumanPerformerName "
    "InterpretationAuthor InterpretationRecorder InterpretationTranscriber NameOfPhysiciansReadingStudy "
    "NamesOfIntendedRecipientsOfResults OperatorsName OrderEnteredBy OtherPatientIDs OtherPatientNames PatientBirthName "
    "PatientMotherBirthName PatientName PerformingPhysicianName PersonName PhysicianApprovingInterpretation PhysiciansOfRecord "
    "ROIInterpreter ReferringPhysicianName RequestingPhysician ResponsiblePerson ReviewerName ScheduledPerformingPhysicianName "
    "SecondaryReviewerName SelectorPNValue VerbalSourceTrial VerifyingObserverName DistributionName "
    "PatientID IssuerOfPatientID TypeOfPatientID PatientAddress PersonAddress PatientTelephoneNumbers PersonTelephoneNumbers "
    "PatientTelecomInformation PersonTelecomInformation PatientInstitutionResidence ScheduledPatientInstitutionResidence "
    "CurrentPatientLocation PatientComments AdditionalPatientHistory PatientReligiousPreference PatientTransportArrangements "
    "MilitaryRank BranchOfService RegionOfResidence MedicalRecordLocator AccessionNumber AdmissionID StudyID IssuerOfAdmissionID "
    "StudyInstanceUID SeriesInstanceUID SOPInstanceUID FrameOfReferenceUID InsurancePlanIdentification "
    "PatientBirthDate PatientBirthTime PatientBirthDateInAlternativeCalendar PatientDeathDateInAlternativeCalendar LastMenstrualDate "
    "AcquisitionDate AcquisitionTime AcquisitionDateTime StudyDate StudyTime SeriesDate SeriesTime ContentDate ContentTime "
    "InstanceCreationDate InstanceCreationTime AdmittingDate AdmittingTime DischargeDate DischargeTime CurveDate CurveTime OverlayDate "
    "OverlayTime PerformedProcedureStepStartDate PerformedProcedureStepStartTime PerformedProcedureStepEndDate "
    "PerformedProcedureStepEndTime ScheduledProcedureStepStartDate ScheduledProcedureStepStartTime PresentationCreationDate "
    "PresentationCreationTime StudyArrivalDate StudyArrivalTime StudyCompletionDate StudyCompletionTime StudyReadDate StudyReadTime "
    "StudyVerifiedDate StudyVerifiedTime InterpretationApprovalDate InterpretationApprovalTime FrameAcquisitionDateTime "
    "FrameReferenceDateTime"
)
"""Keywords of DICOM for persons, their numbers and addresses, and for the dates and times of their visits."""
_PLAIN_KEYWORDS = frozenset(word.casefold() for word in KEYWORDS)

_PLAIN = str.maketrans(
    {"ß": "ss", "é": "e", "è": "e", "ê": "e", "á": "a", "ä": "a", "ö": "o", "ü": "u", "ñ": "n", "ó": "o", "í": "i"}
)


def words(column: str) -> list[str]:
    """The parts of a column's name, without case: ``PatientBirthDate``, ``patient_birth_date`` and ``Patient birth-date`` have the same."""
    column = re.sub(r"IDs(?![a-z])", "Ids", column)
    parted = re.sub(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=\d)(?=[^\W\d_])|(?<=[^\W\d_])(?=\d)", " ", column)
    return [word.casefold().translate(_PLAIN) for word in re.split(r"[\W_]+", parted) if word]


@lru_cache(maxsize=4096)
def identifying(column: str) -> bool:
    """Whether a column's name says that its cells tell who somebody is, or the day on which they were seen."""
    parts = words(column)
    if len(parts) > 1 and parts[0] in ("session", "image") and column.startswith(f"{parts[0]}_"):
        parts = parts[1:]  # keys of a manifest's sessions and images
    told = set(parts)
    pairs = {"".join(pair) for pair in pairwise(parts)}
    if (told | pairs) & PERSON or "".join(parts) in _PLAIN_KEYWORDS:
        return True
    if len(parts) == 1 and told <= ALONE:
        return True
    if told & BIRTH and not told & NOT_OF_BIRTH_DATE:
        return True
    if told & NAMES and (told & NAMED or not told & THINGS):
        return True
    if told & NUMBERED and told & NUMBERS:
        return True
    return bool(told & CLOCK and told & MOMENTS and not told & NOT_A_CLOCK)
